//! Health checks against real sockets: scripted servers on loopback do to a check what servers do in the field.
//! Tests that begin with a letter and a number are the acceptance statement of that number.

mod diagnose;
mod dns;
mod faults;
mod http;
mod https;
mod rotation;
mod schedule;
mod servers;
mod specs;
mod tcp;
mod udp;
