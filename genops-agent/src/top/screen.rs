//! The terminal of `top`: the alternate screen, no echo, single keys.

use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Switches to the alternate screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";

/// Restores the previous screen.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Moves to the upper left corner.
const HOME: &str = "\x1b[H";

/// Erases the rest of a line.
const ERASE_LINE: &str = "\x1b[K";

/// Erases everything below.
const ERASE_BELOW: &str = "\x1b[J";

/// The terminal; dropping restores the previous state.
#[derive(Debug)]
pub(super) struct Screen {
    before: Option<Termios>,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn enter() -> io::Result<Self> {
        // Without a terminal to read from there are no keys, and nothing to restore.
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut single_keys = before.clone();
            single_keys
                .local_modes
                .remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            single_keys.special_codes[SpecialCodeIndex::VMIN] = 0;
            single_keys.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &single_keys)?;
        }
        let screen = Self { before };
        let mut out = io::stdout();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(screen)
    }

    /// Columns and rows.
    #[expect(clippy::unused_self, reason = "there is a size only while the screen is taken over")]
    pub(super) fn size(&self) -> (usize, usize) {
        let size =
            tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Shows `text`, and nothing else.
    #[expect(clippy::unused_self, reason = "drawing elsewhere would garble the user's terminal")]
    pub(super) fn draw(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let lines = text.replace('\n', &format!("{ERASE_LINE}\n"));
        write!(out, "{HOME}{lines}{ERASE_BELOW}")?;
        out.flush()
    }

    /// `q`, escape, Ctrl-C or Ctrl-D was pressed.
    pub(super) fn asked_to_end(&self) -> io::Result<bool> {
        if self.before.is_none() {
            return Ok(false);
        }
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let stdin = io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut ready, Some(&now))? == 0 {
            return Ok(false);
        }
        let mut keys = [0; 64];
        let count = rustix::io::read(&stdin, &mut keys)?;
        let pressed = keys.get(..count).unwrap_or_default();
        Ok(pressed.iter().any(|key| matches!(key, b'q' | b'Q' | 0x1b | 0x03 | 0x04)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        // The terminal is gone: there is nothing to restore.
        out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
        if let Some(before) = &self.before {
            tcsetattr(io::stdin(), OptionalActions::Now, before).unwrap_or_default();
        }
    }
}
