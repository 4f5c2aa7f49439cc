//! A frame of `top`: what is known and a size in, characters out.

use protocol::api::{Host, Phone};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, StatefulWidget, Table, TableState, Widget};

use super::state::{Alarm, Mode, State, short, state_of};
use crate::cli::screen::{NOTHING, printable, time};

/// Lines of alarms before the rest is only counted.
const ALARMS_MAX: usize = 4;
/// Hosts before the rest is only counted, where phones need the room.
const HOSTS_MAX: usize = 6;
/// Phones always have so many lines, if there are so many.
const PHONES_MIN: usize = 5;

const HELP: &[(&str, &str)] = &[
    ("q", "end"),
    ("↑ ↓ PgUp PgDn", "move along the phones (also j, k, g, G)"),
    ("s", "sort by alarms, number, host, rate, today, open"),
    ("r", "the other way round"),
    ("/", "filter by name, number, state or reason"),
    ("Esc", "no filter"),
    ("?", "this"),
    ("", ""),
    ("LEASE", "for how long the host may still send"),
    ("STBY", "hosts that could take over, of those standing by"),
    ("/MIN", "messages given to the phone in the last minute"),
    ("OPEN", "attempts without an end"),
];

const HEADER: Style = Style::new().add_modifier(Modifier::BOLD.union(Modifier::UNDERLINED));

/// A frame.
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    /// There is a keyboard: keys are named and a row is selected.
    pub(super) keys: bool,
}

/// How the lines of a frame are shared out.
struct Parts {
    alarms: usize,
    hosts: usize,
    areas: [Rect; 6],
}

/// Lines that show everything at once.
pub(super) fn height_of_all(state: &State) -> usize {
    let alarms = state.alarms().len().min(ALARMS_MAX + 1);
    let (hosts, phones) = (state.host_rows().len().max(1), state.rows().len().max(1));
    2 + alarms + 2 + hosts + 2 + phones
}

impl View<'_> {
    fn parts(&self, area: Rect) -> Parts {
        let height = usize::from(area.height);
        let keys = usize::from(self.keys);
        let all = self.state.alarms().len();
        let mut alarms = if all > ALARMS_MAX { ALARMS_MAX + 1 } else { all };
        let mut hosts = self.state.host_rows().len().max(1);
        if self.keys {
            hosts = hosts.min(HOSTS_MAX);
            let phones = self.state.rows().len().clamp(1, PHONES_MIN);
            // On a low screen the phones are what counts.
            let fixed = 2 + 2 + 2 + keys + phones;
            let room = height.saturating_sub(fixed);
            hosts = hosts.min(room.saturating_sub(alarms).max(1));
            alarms = alarms.min(room.saturating_sub(hosts));
        }
        let lines = |n: usize| Constraint::Length(u16::try_from(n).unwrap_or(u16::MAX));
        let areas = Layout::vertical([
            lines(1),
            lines(1),
            lines(alarms),
            lines(hosts + 2),
            Constraint::Fill(1),
            lines(keys),
        ])
        .areas(area);
        Parts { alarms, hosts, areas }
    }

    /// Rows of phones that fit.
    pub(super) fn rows(&self, area: Rect) -> usize {
        let [.., phones, _] = self.parts(area).areas;
        usize::from(phones.height.saturating_sub(2))
    }

    fn colour(&self, alarm: Alarm) -> Style {
        match alarm {
            Alarm::Bad if self.state.colours => Style::new().fg(Color::Red),
            Alarm::Warning if self.state.colours => Style::new().fg(Color::Yellow),
            Alarm::Bad => Style::new().add_modifier(Modifier::BOLD),
            Alarm::Warning | Alarm::None => Style::new(),
        }
    }

    fn title(&self) -> Line<'_> {
        let state = self.state;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut spans =
            vec![Span::styled("switchboard", bold), Span::raw(format!("  {}  ", state.url))];
        match (&state.lost, state.answered) {
            (Some((why, since)), answered) => {
                let tells = match answered {
                    Some(at) => format!("what is shown is {} old", short(state.now.since(at))),
                    None => format!("tried for {}", short(state.now.since(*since))),
                };
                let style = self.colour(Alarm::Bad).add_modifier(Modifier::REVERSED);
                spans.push(Span::styled(format!(" NO ANSWER: {tells} "), style));
                spans.push(Span::raw(format!(" {}", printable(why))));
            }
            (None, Some(at)) => spans.push(Span::raw(time(at))),
            (None, None) => spans.push(Span::raw("asking…")),
        }
        Line::from(spans)
    }

    fn summary(&self) -> String {
        let state = self.state;
        let up = state.hosts.iter().filter(|host| host.online).count();
        let fine = state.phones.iter().filter(|phone| state.alarm_of(phone) != Alarm::Bad).count();
        let today: u64 = state.phones.iter().map(|phone| phone.messages_today).sum();
        let open: u64 = state.phones.iter().map(|phone| phone.in_flight).sum();
        let held = match &state.held {
            None => NOTHING.to_owned(),
            Some(held) => {
                let more = if held.more { "+" } else { "" };
                let why = held
                    .by_reason
                    .first()
                    .map_or_else(String::new, |(reason, _)| format!(" ({})", reason.as_str()));
                format!("{}{more}{why}", held.count())
            }
        };
        format!(
            "hosts {up}/{} up   phones {fine}/{} able   today {today}   {}/min   open {open}   held {held}",
            state.hosts.len(),
            state.phones.len(),
            rate(state.rate_of_all()),
        )
    }

    fn alarms(&self, lines: usize, area: Rect, buffer: &mut Buffer) {
        let alarms = self.state.alarms();
        let whole = alarms.len() <= lines;
        let shown = if whole { lines } else { lines.saturating_sub(1) };
        let mut rows: Vec<Line<'_>> = alarms
            .iter()
            .take(shown)
            .map(|(alarm, what)| {
                let mark = if *alarm == Alarm::Bad { "!! " } else { " ! " };
                Line::styled(format!("{mark}{}", printable(what)), self.colour(*alarm))
            })
            .collect();
        if !whole {
            rows.push(Line::raw(format!("   and {} more", alarms.len() - shown)));
        }
        Paragraph::new(rows).render(area, buffer);
    }

    fn host<'a>(&self, host: &'a Host) -> Row<'a> {
        let alarm = State::alarm_of_host(host);
        let link = match (host.online, host.drained_at) {
            (true, None) => "up",
            (true, Some(_)) => "drained",
            (false, _) => "DOWN",
        };
        let seen = host
            .last_seen_at
            .map_or_else(|| NOTHING.to_owned(), |at| short(self.state.now.since(at)));
        let version = host.version.clone().unwrap_or_else(|| NOTHING.to_owned());
        Row::new([
            printable(&host.name),
            link.to_owned(),
            seen,
            host.phones.len().to_string(),
            host.standby_phones.len().to_string(),
            printable(&version),
        ])
        .style(self.colour(alarm))
    }

    fn hosts(&self, lines: usize, area: Rect, buffer: &mut Buffer) {
        let all = self.state.host_rows();
        let rows: Vec<Row<'_>> = all.iter().take(lines).map(|host| self.host(host)).collect();
        let more = all.len().saturating_sub(lines);
        let header = if more > 0 { format!("HOST (+{more})") } else { "HOST".to_owned() };
        let header =
            [header.as_str(), "LINK", "SEEN", "PHONES", "STBY", "VERSION"].map(str::to_owned);
        let widths = [
            Constraint::Min(16),
            Constraint::Length(7),
            Constraint::Length(5),
            Constraint::Length(6),
            Constraint::Length(5),
            Constraint::Length(12),
        ];
        let [_, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let table = Table::new(rows, widths).header(Row::new(header).style(HEADER));
        Widget::render(table, body, buffer);
    }

    fn phone<'a>(&self, phone: &'a Phone) -> Row<'a> {
        let state = self.state;
        let (able, all) = State::standby(phone);
        Row::new([
            phone.number.to_string(),
            printable(&state_of(phone)),
            printable(&state.host_name(phone.host.as_ref())),
            if all == 0 { NOTHING.to_owned() } else { format!("{able}/{all}") },
            state.lease_left(phone).map_or_else(|| NOTHING.to_owned(), short),
            rate(state.rate(&phone.id)),
            phone.messages_today.to_string(),
            phone.in_flight.to_string(),
        ])
        .style(self.colour(state.alarm_of(phone)))
    }

    fn phones(&self, area: Rect, buffer: &mut Buffer) {
        let shown = self.state.rows();
        let rows: Vec<Row<'_>> = shown.iter().map(|phone| self.phone(phone)).collect();
        let header = ["PHONE", "STATE", "HOST", "STBY", "LEASE", "/MIN", "TODAY", "OPEN"];
        let widths = [
            Constraint::Length(16),
            Constraint::Fill(2),
            Constraint::Fill(1),
            Constraint::Length(4),
            Constraint::Length(5),
            Constraint::Length(6),
            Constraint::Length(6),
            Constraint::Length(4),
        ];
        let empty = rows.is_empty();
        let [head, body] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let order = if self.state.reverse { "↓" } else { "" };
        let filter = if self.state.filter.is_empty() {
            String::new()
        } else {
            format!("   filter: {}", printable(&self.state.filter))
        };
        let title = format!("by {}{order}{filter}", self.state.sort.as_str());
        Line::raw(title).render(head, buffer);
        if empty {
            let words = match (self.state.answered, self.state.filter.is_empty()) {
                (None, _) => "",
                (Some(_), true) => "there is no phone: they come with the host that serves them",
                (Some(_), false) => "nothing matches the filter",
            };
            Line::raw(words).render(body, buffer);
            return;
        }
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(HEADER))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let selected = self.keys.then_some(self.state.selected);
        let mut at = TableState::new().with_selected(selected);
        StatefulWidget::render(table, body, buffer, &mut at);
    }

    fn keys(&self, area: Rect, buffer: &mut Buffer) {
        let line = if self.state.mode == Mode::Typing {
            Line::raw(format!("/{}█   Enter keeps it, Esc drops it", printable(&self.state.filter)))
        } else {
            Line::raw("q end   ↑↓ move   s sort   r reverse   / filter   ? help")
        };
        line.style(Style::new().add_modifier(Modifier::DIM)).render(area, buffer);
    }
}

fn help(area: Rect, buffer: &mut Buffer) {
    let lines: Vec<Line<'_>> =
        HELP.iter().map(|(key, what)| Line::raw(format!(" {key:<14} {what}"))).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let width = 68.min(area.width);
    let at = Rect::new(
        area.x + (area.width - width) / 2,
        area.y + (area.height - height) / 2,
        width,
        height,
    );
    Clear.render(at, buffer);
    let block = Block::bordered().title(" any key closes this ");
    Paragraph::new(lines).block(block).render(at, buffer);
}

impl Widget for View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Parts { alarms, hosts, areas } = self.parts(area);
        let [title, summary, alarming, host_area, phone_area, keys] = areas;
        self.title().render(title, buffer);
        Line::raw(self.summary()).render(summary, buffer);
        self.alarms(alarms, alarming, buffer);
        self.hosts(hosts, host_area, buffer);
        self.phones(phone_area, buffer);
        if self.keys {
            self.keys(keys, buffer);
        }
        if self.state.mode == Mode::Help {
            help(area, buffer);
        }
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| NOTHING.to_owned(), |rate| format!("{rate:.1}"))
}

/// The characters of a frame, without what only a terminal understands.
pub(super) fn text_of(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines: Vec<String> = buffer
        .content
        .chunks(width)
        .map(|cells| {
            let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        })
        .collect();
    lines.join("\n").trim_end().to_owned()
}
