//! Safe display of untrusted text (paths, names of commands and hosts, findings about a file) on a
//! terminal, in a log or on a socket: on a single line, without characters acting on a terminal or
//! changing the reading order, and of limited length.

use std::fmt::{self, Display, Formatter, Write as _};

/// Most characters shown of a text.
const SHOWN_LIMIT: usize = 256;

/// Most characters of a line with untrusted texts.
const LINE_LIMIT: usize = 64 << 10;

/// An untrusted text, safe to show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign<T>(pub(crate) T);

/// A line of the agent's own with untrusted texts, each already short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<T>(pub(crate) T);

impl<T: Display> Display for Foreign<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        show(&self.0, SHOWN_LIMIT, f)
    }
}

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        show(&self.0, LINE_LIMIT, f)
    }
}

fn show(text: &impl Display, limit: usize, f: &mut Formatter<'_>) -> fmt::Result {
    let mut shown = Shown { out: f, left: limit, cut: false };
    write!(shown, "{text}")?;
    if shown.cut { f.write_str("...") } else { Ok(()) }
}

/// Escapes written text, up to a limit.
struct Shown<'a, 'f> {
    out: &'a mut Formatter<'f>,
    left: usize,
    cut: bool,
}

impl fmt::Write for Shown<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if self.left == 0 {
                self.cut = true;
                break;
            }
            self.left -= 1;
            if acts(char) {
                write!(self.out, "{}", char.escape_unicode())?;
            } else {
                self.out.write_char(char)?;
            }
        }
        Ok(())
    }
}

/// Tells whether a character acts on a display: control characters, line and paragraph separators,
/// and invisible or reordering characters (Unicode Standard Annex 9, §2).
pub(crate) fn acts(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_line_or_acts_on_the_terminal() {
        for (text, expected) in [
            ("/usr/bin/ordinary name-1.2", "/usr/bin/ordinary name-1.2"),
            ("a\nagent: all is well\r", "a\\u{a}agent: all is well\\u{d}"),
            ("\u{1b}]0;title\u{7}\u{9b}2J", "\\u{1b}]0;title\\u{7}\\u{9b}2J"),
            ("\u{2028}x\u{85}", "\\u{2028}x\\u{85}"),
            ("exe\u{202e}gpj", "exe\\u{202e}gpj"),
            ("größe 日本", "größe 日本"),
            ("", ""),
        ] {
            assert_eq!(Foreign(text).to_string(), expected);
        }
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        let long = "/x".repeat(4_000);
        let shown = Foreign(&long).to_string();
        assert_eq!(shown.len(), SHOWN_LIMIT + 3);
        assert!(shown.ends_with("/x..."));
        let fits = "y".repeat(SHOWN_LIMIT);
        assert_eq!(Foreign(&fits).to_string(), fits);
    }
}
