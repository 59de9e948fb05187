//! Prints AWUs from a separate thread: a blocked terminal or pipe must not hold a verdict back.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use genops_governance::Awu;

use super::{Output, Renderer};
use crate::metrics::Metrics;

/// Most AWUs waiting to be printed; beyond the limit, AWUs are counted and not printed.
const QUEUE: usize = 4_096;

/// Longest wait at the end for AWUs still to be printed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints to the standard output.
#[derive(Debug)]
pub(crate) struct Printer {
    /// `None`: nothing is printed.
    running: Option<(SyncSender<Arc<Awu>>, JoinHandle<()>)>,
    metrics: Arc<Metrics>,
}

impl Printer {
    /// Starts the thread; no thread for [`Output::None`].
    pub(crate) fn start(output: Output, metrics: Arc<Metrics>) -> io::Result<Self> {
        if output == Output::None {
            return Ok(Self { running: None, metrics });
        }
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("print".to_owned()).spawn(move || {
            // The reader of the output is gone: printing ends, governing continues.
            print(&receiver, Renderer::stdout(output)).unwrap_or_default();
        })?;
        Ok(Self { running: Some((sender, thread)), metrics })
    }

    /// Queues an AWU; false if the queue was full (counted as lost).
    pub(crate) fn try_print(&self, awu: &Arc<Awu>) -> bool {
        let Some((sender, _)) = &self.running else { return true };
        let taken = sender.try_send(Arc::clone(awu)).is_ok();
        if !taken {
            self.metrics.lost_print_queue_full.increment();
        }
        taken
    }

    /// Prints queued AWUs, for at most [`PATIENCE`]: a blocked terminal must not keep the agent
    /// alive.
    pub(crate) fn finish(self) {
        let Some((sender, thread)) = self.running else { return };
        drop(sender);
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Prints until the sender is gone; flushes whenever nothing waits.
fn print(receiver: &Receiver<Arc<Awu>>, mut renderer: Renderer) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout());
    while let Ok(awu) = receiver.recv() {
        renderer.write(&awu, &mut out)?;
        while let Ok(awu) = receiver.try_recv() {
            renderer.write(&awu, &mut out)?;
        }
        out.flush()?;
    }
    Ok(())
}
