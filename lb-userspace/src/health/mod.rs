//! Health: the checks of each protocol, the state machine that turns results into a rotation, and the four
//! levels that turn them into a status.
