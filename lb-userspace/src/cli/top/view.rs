//! Draws the view.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table};

use super::sample::{History, Order, Row};

/// Most lines that listeners, and below them drops and SNAT, take of the screen.
const PANEL: u16 = 10;

/// What the user has chosen to see.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    pub(super) order: Order,
    pub(super) is_paused: bool,
    /// Backends that have been scrolled past.
    pub(super) offset: usize,
}

impl View {
    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, history: &History) {
        let (mut listeners, mut backends) = (history.listeners(), history.backends());
        self.order.sort(&mut listeners);
        self.order.sort(&mut backends);
        self.offset = self.offset.min(backends.len().saturating_sub(1));
        let lines = |count: usize| u16::try_from(count).unwrap_or(PANEL).min(PANEL);
        let below = lines(history.drops().len().max(history.snat().len()).max(1)) + 1;
        let [head, above, middle, bottom, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(lines(listeners.len()) + 2),
            Constraint::Min(3),
            Constraint::Length(below),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(header(history), head);
        frame.render_widget(table("LISTENER", "ADDRESS", &listeners), above);
        frame.render_widget(table("BACKEND", "STATE", &backends[self.offset..]), middle);
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(40), Constraint::Min(0)]).spacing(2).areas(bottom);
        draw_drops(frame, left, history);
        draw_snat(frame, right, history);
        frame.render_widget(self.footer(history), foot);
    }

    fn footer(&self, history: &History) -> Line<'static> {
        let state = match (&history.problem, self.is_paused) {
            (_, true) => Span::from("PAUSED").yellow().bold(),
            (Some(problem), false) => Span::from(problem.clone()).red().bold(),
            (None, false) => Span::from("each second"),
        };
        Line::from(vec![
            format!("q quit  s sort: {}  p pause  up/down scroll  ", self.order.word()).into(),
            state,
        ])
    }
}

fn header(history: &History) -> Paragraph<'static> {
    let status = history.status();
    let interfaces: Vec<String> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({} XDP)", interface.name, interface.mode))
        .collect();
    Paragraph::new(vec![
        Line::from(vec![
            Span::styled(status.status.clone(), colour(&status.status)).bold(),
            format!("  instance {}: {}", status.instance, status.reason).into(),
        ]),
        Line::from(interfaces.join("  ")).dim(),
    ])
}

fn table(title: &'static str, detail: &'static str, rows: &[Row]) -> Table<'static> {
    let heading = ["HEALTH", title, detail, "PACKETS/s", "BYTES/s", "NEW/s", "FLOWS"];
    let heading = heading.into_iter().enumerate().map(|(column, text)| match column {
        0..3 => Cell::from(text),
        _ => Cell::from(Line::from(text).right_aligned()),
    });
    let number = |text: String| Cell::from(Line::from(text).right_aligned());
    // More rows than the tallest terminal has lines need not be laid out.
    let rows = rows.iter().take(usize::from(u16::MAX)).map(|row| {
        TableRow::new([
            Cell::from(Span::styled(row.level.clone(), colour(&row.level))),
            Cell::from(row.name.clone()),
            Cell::from(row.detail.clone()),
            number(short(row.rates.packets)),
            number(short(row.rates.bytes)),
            number(short(row.rates.new_flows)),
            number(row.flows.to_string()),
        ])
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Min(20),
        Constraint::Min(24),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    Table::new(rows, widths)
        .header(TableRow::new(heading).style(Style::new().bold()))
        .block(Block::new().borders(Borders::TOP))
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let mut lines: Vec<Line<'_>> = history
        .drops()
        .into_iter()
        .map(|(reason, count, rate)| Line::from(format!("{reason:<22} {count:>10} {:>8}/s", short(rate))))
        .collect();
    if lines.is_empty() {
        lines.push(Line::from("none").dim());
    }
    frame.render_widget(panel("DROPS", lines), area);
}

fn draw_snat(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let mut lines: Vec<Line<'_>> = history
        .snat()
        .into_iter()
        .map(|(snat, share)| {
            let text = format!(
                "{} -> {}/{} {} {} of {} ({share:.1} %)",
                snat.address, snat.backend_set, snat.backend, snat.protocol, snat.in_use, snat.ports
            );
            if share < 75.0 { Line::from(text) } else { Line::from(text).yellow() }
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::from("none").dim());
    }
    frame.render_widget(panel("SNAT PORTS IN USE", lines), area);
}

fn panel<'a>(title: &'static str, lines: Vec<Line<'a>>) -> Paragraph<'a> {
    Paragraph::new(lines).block(Block::new().borders(Borders::TOP).title(Span::from(title).bold()))
}

fn colour(level: &str) -> Color {
    match level {
        "OK" => Color::Green,
        "WARNING" => Color::Yellow,
        "CRITICAL" => Color::Red,
        _ => Color::DarkGray,
    }
}

/// A number in at most seven characters, with the prefixes of the International System of Units.
fn short(number: f64) -> String {
    let mut number = number;
    for prefix in ["", "k", "M", "G", "T"] {
        if number < 999.5 {
            return match prefix {
                "" => format!("{number:.0}"),
                prefix => format!("{number:.1} {prefix}"),
            };
        }
        number /= 1000.0;
    }
    format!("{number:.0} P")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::sample::Sample;
    use super::*;

    /// An instance that has forwarded so many packets, of 100 bytes, and made a tenth as many flows.
    fn sample(taken: Instant, packets: u64) -> Sample {
        let counts = |share: u64, extra: serde_json::Value| {
            let mut counted = json!({
                "packets": packets / share, "bytes": packets * 100 / share, "new_flows": packets / 10 / share,
                "active_flows": packets / 100 / share,
            });
            counted.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            counted
        };
        let backend = |name: &str, share: u64, status: &str, state: &str| {
            counts(
                share,
                json!({
                    "name": name, "address": "10.0.1.10", "port": 8080, "status": status, "state": state,
                    "in_rotation": state == "ACTIVE", "weight": 1, "refused": 0, "unanswered": 0,
                    "next_hop_problem": null, "result": {},
                }),
            )
        };
        let listener = json!({
            "name": "web", "address": "10.0.1.100", "port": 80, "protocol": "tcp", "backend_set": "web",
            "status": "WARNING", "reason": "", "drops": {}, "ports": "80-80", "passes": {}, "notes": {},
        });
        let set = json!({
            "name": "web", "status": "WARNING", "reason": "1 of 2", "total": 2, "ok": 1, "warning": [],
            "critical": ["b"], "unknown": [],
            "backends": [backend("a", 4, "OK", "ACTIVE"), backend("b", 2, "CRITICAL", "DOWN")],
        });
        let snat = json!([{
            "address": "10.0.1.100", "backend_set": "web", "backend": "a", "protocol": "tcp", "in_use": 51609,
            "ports": 64512,
        }]);
        let status = json!({
            "version": 1, "instance": "lb", "status": "WARNING", "reason": "set web is WARNING",
            "config": {"file": "", "loaded_at": "", "last_reload_error": null, "reload_failures": 0},
            "interfaces": [{"name": "eth0", "mode": "native", "program_id": 7}],
            "listeners": [counts(1, listener)],
            "backend_sets": [set], "drops": {"no_backend": packets / 50, "malformed": 0}, "snat": snat,
            "passes": {}, "notes": {},
        });
        Sample { taken, status: serde_json::from_value(status).unwrap() }
    }

    fn history() -> History {
        let begin = Instant::now();
        let mut history = History::new(sample(begin, 1_000));
        history.add(sample(begin + Duration::from_secs(2), 25_000));
        history
    }

    fn drawn(view: &mut View, history: &History) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 18)).unwrap();
        terminal.draw(|frame| view.draw(frame, history)).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn everything_is_on_the_screen() {
        insta::assert_snapshot!(drawn(&mut View::default(), &history()));
    }

    #[test]
    fn rows_are_sorted_and_scrolled_and_a_pause_is_shown() {
        let history = history();
        let mut view = View { order: Order::Packets, is_paused: true, offset: 0 };
        let text = drawn(&mut view, &history);
        let at = |text: &str, name: &str| text.find(name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        assert!(at(&text, "web/b") < at(&text, "web/a "), "{text}");
        assert!(text.contains("PAUSED") && text.contains("s sort: packets"), "{text}");
        view = View { offset: 7, ..View::default() };
        let text = drawn(&mut view, &history);
        assert!(text.contains("web/b") && !text.contains("CRITICAL web/a"), "{text}");
        assert_eq!(view.offset, 1, "the last one stays");
    }

    #[test]
    fn an_instance_that_no_longer_answers_is_said_so() {
        let mut history = history();
        history.problem = Some("the instance is not running".to_owned());
        assert!(drawn(&mut View::default(), &history).contains("the instance is not running"));
    }

    #[test]
    fn counters_that_begin_anew_have_no_rate() {
        let begin = Instant::now();
        let mut history = History::new(sample(begin, 25_000));
        assert_eq!(history.listeners()[0].rates.packets, 0.0);
        history.add(sample(begin + Duration::from_secs(1), 100));
        assert_eq!(history.listeners()[0].rates.packets, 0.0);
    }

    #[test]
    fn the_smallest_terminal_is_drawn_without_a_panic() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| View::default().draw(frame, &history())).unwrap();
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (999.9, "1.0 k"),
            (1234.0, "1.2 k"),
            (2.5e6, "2.5 M"),
            (1e18, "1000 P"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
