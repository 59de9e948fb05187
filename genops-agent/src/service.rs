//! Notifications to the service manager (`sd_notify(3)`): readiness, watchdog, missing conditions,
//! and the stop. Without a service manager nothing is sent.
//!
//! A separate thread sends, because a service manager not reading its socket would block the main
//! loop.

use std::{
    env, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;

use crate::metrics::Metrics;

/// Longest interval between notifications.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The agent as a unit of a service manager.
#[derive(Debug)]
pub(crate) struct Service {
    /// Rounds of the main loop.
    rounds: Arc<AtomicU64>,
}

impl Service {
    /// Reports readiness, and from now on the state.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started.
    pub(crate) fn start(metrics: Arc<Metrics>) -> Result<Self> {
        let rounds = Arc::new(AtomicU64::new(1));
        if env::var_os("NOTIFY_SOCKET").is_some() {
            let seen = Arc::clone(&rounds);
            let tell = move || tell(&metrics, &seen);
            let thread = std::thread::Builder::new().name("service".to_owned()).spawn(tell);
            thread.context("a thread for the service manager")?;
        }
        Ok(Self { rounds })
    }

    /// Counts a round of the main loop.
    pub(crate) fn goes_on(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// Reports the end of the agent.
    pub(crate) fn ends() {
        say_if_it_fails(sd_notify::notify(&[NotifyState::Stopping]));
    }
}

/// Sends notifications for ever. While the main loop stands still, no watchdog message is sent: the
/// service manager's watchdog then ends the agent.
fn tell(metrics: &Metrics, rounds: &AtomicU64) {
    say_if_it_fails(sd_notify::notify(&[NotifyState::Ready]));
    // Half of the watchdog's time, as `sd_watchdog_enabled(3)` recommends.
    let watchdog = sd_notify::watchdog_enabled().map(|it| it / 2);
    let pause = watchdog.map_or(TELL_EVERY, |it| it.min(TELL_EVERY));
    let (mut told, mut status) = (0, String::new());
    loop {
        let now = rounds.load(Ordering::Relaxed);
        let missing = metrics.readiness.missing();
        let new = missing.map_or_else(|| "ready".to_owned(), |it| format!("waits for {it}"));
        if new != status {
            status = new;
            say_if_it_fails(sd_notify::notify(&[NotifyState::Status(&status)]));
        }
        if std::mem::replace(&mut told, now) != now {
            say_if_it_fails(sd_notify::notify(&[NotifyState::Watchdog]));
        }
        std::thread::sleep(pause);
    }
}

fn say_if_it_fails(told: io::Result<()>) {
    if let Err(error) = told {
        eprintln!("genops-agent: the service manager can't be told: {error}");
    }
}
