//! Tables that line up, and the few words of colour and age that they are made with.

use crate::decode::safe;

/// Spaces between columns.
const COLUMN_GAP: usize = 3;

/// How a cell is painted, on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// All is well.
    Good,
    /// Somebody should look.
    Warn,
    /// Wrong.
    Bad,
    /// Of lesser interest.
    Dim,
    /// What the eye looks for.
    Name,
}

/// `text` painted, if `colour`.
pub fn paint(text: &str, paint: Paint, colour: bool) -> String {
    let code = match paint {
        _ if !colour => return text.to_owned(),
        Paint::Plain => return text.to_owned(),
        Paint::Good => "32",
        Paint::Warn => "33",
        Paint::Bad => "31",
        Paint::Dim => "2",
        Paint::Name => "36",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// A painted cell. What comes from elsewhere is made safe here.
    pub fn new(text: impl AsRef<str>, paint: Paint) -> Self {
        Self { text: safe(text.as_ref()), paint }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Paint::Plain)
    }
}

/// Rows under their columns' names, each column as wide as its widest cell, without spaces at the ends of lines.
pub fn table(columns: &[&str], rows: &[Vec<Cell>], colour: bool) -> String {
    let heads: Vec<Cell> = columns.iter().map(Cell::from).collect();
    let all: Vec<&[Cell]> = std::iter::once(heads.as_slice()).chain(rows.iter().map(Vec::as_slice)).collect();
    let mut widths = vec![0; columns.len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row.iter()) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let mut out = String::new();
    for row in all {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in row.iter().zip(&widths) {
            if !cell.text.is_empty() {
                line.push_str(&" ".repeat(gap));
                line.push_str(&paint(&cell.text, cell.paint, colour));
                gap = 0;
            }
            gap += width - cell.text.chars().count() + COLUMN_GAP;
        }
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// How long ago, as kubectl writes it: the two units that matter.
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let two = |a: u64, unit: &str, b: u64, small: &str| match b {
        0 => format!("{a}{unit}"),
        b => format!("{a}{unit}{b}{small}"),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => two(m, "m", s % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        _ => format!("{d}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let rows = vec![
            vec!["edge-a".into(), Cell::new("Ready", Paint::Good), "3".into()],
            vec!["grün".into(), Cell::new("", Paint::Bad), "10".into()],
            vec!["x".into(), Cell::new("NotReady", Paint::Bad), "".into()],
        ];
        let want = "\
NAME     STATUS     PODS
edge-a   Ready      3
grün                10
x        NotReady
";
        assert_eq!(table(&["NAME", "STATUS", "PODS"], &rows, false), want);
        let painted = table(&["NAME", "STATUS", "PODS"], &rows, true);
        assert!(painted.contains("\x1b[32mReady\x1b[0m      3"), "{painted:?}");
        let plain = painted.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(plain, want);
    }

    #[test]
    fn a_cell_cannot_break_the_table() {
        let shown = table(&["A"], &[vec!["x\ny\x1b[2J".into()]], true);
        assert_eq!(shown, "A\nx\\ny\\u{1b}[2J\n");
    }

    #[test]
    fn ages_read_as_kubectls() {
        let minute = 60_000;
        let hour = 60 * minute;
        for (ms, want) in [
            (0, "0s"),
            (119_000, "119s"),
            (2 * minute, "2m"),
            (9 * minute + 5_000, "9m5s"),
            (150 * minute, "150m"),
            (4 * hour + 3 * minute, "4h3m"),
            (47 * hour, "47h"),
            (50 * hour, "2d2h"),
            (8 * 24 * hour, "8d"),
        ] {
            assert_eq!(age(ms), want);
        }
    }
}
