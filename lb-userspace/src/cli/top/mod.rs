//! `lb top`: a live view, made of what `GET /v1/status` says each second.

mod sample;
mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use ratatui::DefaultTerminal;
use reqwest::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{FAILED, OK, Target, not_running};
use crate::api::client;
use crate::status::Status;
use sample::{History, Sample};
use view::View;

/// Time from one look at the instance to the next.
const REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    target: Target,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Redraw,
    Nothing,
}

impl Top {
    pub(super) async fn execute(&self) -> Result<u8> {
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            eprintln!(
                "lb top: expected a terminal, but the input or output is none; `lb status --json` is for programs"
            );
            return Ok(FAILED);
        }
        let instance = self.target.instance()?;
        let Some(first) = look(&instance.socket()).await? else { return Ok(not_running(&instance)) };
        let mut terminal = ratatui::try_init().context("cannot take over the terminal")?;
        let shown = show(&mut terminal, instance.socket(), first).await;
        ratatui::restore();
        shown.map(|()| OK)
    }
}

/// Draws until the user or a signal ends it.
async fn show(terminal: &mut DefaultTerminal, socket: PathBuf, first: Sample) -> Result<()> {
    let (publish, mut samples) = mpsc::channel(1);
    // A task of its own, so that an instance that does not answer holds up no key.
    let looking = tokio::spawn(look_each_second(socket, publish));
    let mut keys = EventStream::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle signals")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot handle signals")?;
    let mut history = History::new(first);
    let mut view = View::default();
    loop {
        terminal.draw(|frame| view.draw(frame, &history)).context("cannot draw")?;
        tokio::select! {
            Some(sample) = samples.recv() => {
                if !view.is_paused {
                    match sample {
                        Ok(sample) => history.add(sample),
                        Err(problem) => history.problem = Some(format!("{problem:#}")),
                    }
                }
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) => if press(&mut view, key) == Wish::Quit { break },
                // The size of the terminal, for one: draw again.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read keys"),
                None => break,
            },
            _ = terminate.recv() => break,
            _ = hang_up.recv() => break,
        }
    }
    looking.abort();
    Ok(())
}

async fn look_each_second(socket: PathBuf, publish: mpsc::Sender<Result<Sample>>) {
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    refresh.tick().await;
    loop {
        refresh.tick().await;
        let sample = look(&socket).await;
        let sample = sample.and_then(|sample| sample.ok_or_else(|| anyhow!("the instance is not running")));
        if publish.send(sample).await.is_err() {
            return;
        }
    }
}

/// One look at the instance; `None` if it does not run.
async fn look(socket: &std::path::Path) -> Result<Option<Sample>> {
    let Some(reply) = client::ask(socket, Method::GET, "/v1/status").await? else { return Ok(None) };
    if !reply.is_success() {
        return Err(anyhow!("the instance did not give its status: {}", reply.error()));
    }
    let taken = Instant::now();
    let status: Status =
        serde_json::from_value(reply.body).context("the instance answered with another kind of status")?;
    Ok(Some(Sample { taken, status }))
}

fn press(view: &mut View, key: KeyEvent) -> Wish {
    if key.kind == KeyEventKind::Release {
        return Wish::Nothing;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::Quit,
        KeyCode::Char('s') => view.order = view.order.next(),
        KeyCode::Char('p' | ' ') => view.is_paused = !view.is_paused,
        KeyCode::Down | KeyCode::Char('j') => view.offset = view.offset.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => view.offset = view.offset.saturating_sub(1),
        KeyCode::PageDown => view.offset = view.offset.saturating_add(10),
        KeyCode::PageUp => view.offset = view.offset.saturating_sub(10),
        KeyCode::Home => view.offset = 0,
        _ => return Wish::Nothing,
    }
    Wish::Redraw
}

#[cfg(test)]
mod tests {
    use super::*;
    use sample::Order;

    #[test]
    fn keys_sort_pause_scroll_and_quit() {
        let mut view = View::default();
        let mut press = |code, modifiers| {
            let wish = press(&mut view, KeyEvent::new(code, modifiers));
            (wish, view.order, view.is_paused, view.offset)
        };
        let plain = KeyModifiers::NONE;
        assert_eq!(press(KeyCode::Char('s'), plain), (Wish::Redraw, Order::Packets, false, 0));
        assert_eq!(press(KeyCode::Char('p'), plain), (Wish::Redraw, Order::Packets, true, 0));
        assert_eq!(press(KeyCode::Char(' '), plain), (Wish::Redraw, Order::Packets, false, 0));
        assert_eq!(press(KeyCode::Down, plain), (Wish::Redraw, Order::Packets, false, 1));
        assert_eq!(press(KeyCode::PageUp, plain), (Wish::Redraw, Order::Packets, false, 0));
        assert_eq!(press(KeyCode::Char('x'), plain).0, Wish::Nothing);
        assert_eq!(press(KeyCode::Char('c'), plain).0, Wish::Nothing);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL).0, Wish::Quit);
        assert_eq!(press(KeyCode::Char('q'), plain).0, Wish::Quit);
    }
}
