//! Memory budget of all decoders of an engine, shared by users.
//!
//! A user may hold as much as all users leave free: alone, half of the total. However much some
//! users hold, there is room for another user.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A budget of memory shared by connections: windows of decompressors and texts.
#[derive(Debug, Default)]
pub struct Memory {
    used: AtomicUsize,
    /// Total budget, for the budget of a user.
    of: Option<Arc<Memory>>,
}

impl Memory {
    /// Maximum bytes of all users together. Data needing more is not read.
    pub const LIMIT: usize = 32 << 20;

    /// Creates the budget for the connections of a user, within the total.
    #[must_use]
    pub fn of_user(all: &Arc<Self>) -> Self {
        Self { used: AtomicUsize::new(0), of: Some(Arc::clone(all)) }
    }

    /// Returns the bytes held at the moment.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`. Returns false and takes none if there is no room.
    fn take(&self, bytes: usize) -> bool {
        let own = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let fits = match &self.of {
            None => own <= Self::LIMIT,
            Some(all) => {
                let free = Self::LIMIT.saturating_sub(all.used().saturating_add(bytes));
                own <= free && all.take(bytes)
            }
        };
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(all) = &self.of {
            all.give_back(bytes);
        }
    }
}

/// Memory held by a decoder; given back on drop.
#[derive(Debug, Default)]
pub(crate) struct Share {
    of: Option<Arc<Memory>>,
    bytes: usize,
}

impl Share {
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self { of: Some(Arc::clone(memory)), bytes: 0 }
    }

    /// Sets the bytes held. Returns false if there is no room and the decoder must let go.
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let Some(memory) = self.of.as_ref().filter(|_| bytes != self.bytes) else { return true };
        if bytes <= self.bytes {
            memory.give_back(self.bytes - bytes);
        } else if !memory.take(bytes - self.bytes) {
            return false;
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_makes_room_and_what_does_not_fit_takes_none() {
        let memory = Arc::new(Memory::default());
        let (mut one, mut two) = (Share::of(&memory), Share::of(&memory));
        assert!(one.set(Memory::LIMIT - 10));
        assert!(!two.set(11));
        assert!(two.set(10));
        assert!(two.set(3));
        assert_eq!(memory.used(), Memory::LIMIT - 7);
        drop(one);
        assert_eq!(memory.used(), 3);
        drop(two);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn whatever_some_users_hold_there_is_room_for_one_more() {
        let all = Arc::new(Memory::default());
        let user = || Share::of(&Arc::new(Memory::of_user(&all)));
        let (mut greedy, mut second) = (user(), user());
        assert!(!greedy.set(Memory::LIMIT / 2 + 1));
        assert!(greedy.set(Memory::LIMIT / 2));
        assert!(!second.set(Memory::LIMIT / 4 + 1));
        assert!(second.set(Memory::LIMIT / 4));
        assert!(user().set(Memory::LIMIT / 8));
        drop(greedy);
        assert!(second.set(3 * Memory::LIMIT / 8));
        drop(second);
        assert_eq!(all.used(), 0);
    }
}
