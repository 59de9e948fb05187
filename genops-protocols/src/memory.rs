//! What all decoders of an engine may hold together, whoever makes them work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One budget of memory, shared by connections: windows of decompressors and texts.
#[derive(Debug, Default)]
pub struct Memory {
    used: AtomicUsize,
}

impl Memory {
    /// Most bytes of all together. What would need more is not read.
    pub const LIMIT: usize = 32 << 20;

    /// Bytes held at the moment.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one decoder holds of it; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Share {
    of: Option<Arc<Memory>>,
    bytes: usize,
}

impl Share {
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self { of: Some(Arc::clone(memory)), bytes: 0 }
    }

    /// It holds so many bytes now. False: there is no room for them, and it must let go.
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let Some(memory) = &self.of else { return true };
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes <= before {
            memory.used.fetch_sub(before - bytes, Ordering::Relaxed);
            return true;
        }
        let more = bytes - before;
        let fits = memory.used.fetch_add(more, Ordering::Relaxed) + more <= Memory::LIMIT;
        if !fits {
            memory.used.fetch_sub(more, Ordering::Relaxed);
            self.bytes = before;
        }
        fits
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
}
