//! The order of network services as this supervisor changes it: what it was is written down first.

use std::path::PathBuf;

use super::services::{self, Changed, Found, Service};
use crate::files::{self, FileError};
use crate::helper::{Helper, HelperError};
use crate::pool::chain;

/// Why the order could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// The helper did not.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// What it was could not be written down, so it was left alone.
    #[error("writing down the order of network services")]
    File(#[from] FileError),
    /// The uplink's service is not there.
    #[error(
        "there is no network service `{0}`; `networksetup -listnetworkserviceorder` names them all"
    )]
    NoService(String),
}

/// Where an uplink's probes go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seat {
    /// By this interface.
    Interface(String),
    /// Its service has none now, or is not there.
    Nowhere,
    /// Nobody has said yet.
    Unknown,
}

/// What the order says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Of each uplink.
    pub(crate) seats: Vec<Seat>,
    /// The uplink whose service comes first.
    pub(crate) chosen: Option<usize>,
}

/// Reads and changes it.
#[derive(Debug)]
pub(crate) struct Orders {
    helper: Helper,
    file: PathBuf,
    /// What was made of it and is not undone.
    left: Option<Changed>,
    /// The service of each uplink.
    ours: Vec<String>,
}

impl Orders {
    /// Through the helper, with what an earlier life has written into the file.
    pub(crate) fn load(helper: Helper, file: PathBuf, ours: Vec<String>) -> Self {
        let left = match files::read(&file) {
            Ok(text) => serde_json::from_str(&text)
                .inspect_err(|error| {
                    tracing::error!(file = %file.display(), %error,
                        "what the order of network services was cannot be read; it is left as it is");
                })
                .ok(),
            Err(error) if error.is_missing() => None,
            Err(error) => {
                tracing::error!(error = chain(&error), "the order of network services is left as it is");
                None
            }
        };
        Self { helper, file, left, ours }
    }

    /// Whether something is left to undo.
    pub(crate) fn has_changed(&self) -> bool {
        self.left.is_some()
    }

    /// Reads the order. What an earlier life has made of it is kept while its uplinks are still configured, so that a
    /// restart in the middle of an outage stays where the internet is; it is undone by the way back, or here.
    pub(crate) async fn look(&mut self) -> Result<Look, OrderError> {
        let mut list = self.helper.services().await?;
        match services::found(&services::names(&list), self.left.as_ref(), &self.ours) {
            Found::Ours => {}
            Found::Nothing => self.forget(),
            Found::Theirs => {
                tracing::warn!(
                    "somebody has changed the order of network services; theirs is kept"
                );
                self.forget();
            }
            Found::Undo(before) => {
                list = self.helper.order(&before).await?;
                tracing::warn!(order = ?before, "the order of network services is again what it was");
                self.forget();
            }
        }
        Ok(self.read(&list))
    }

    fn read(&self, list: &[Service]) -> Look {
        let seats = self.ours.iter().map(|name| {
            let device = list.iter().find(|service| service.name == *name && service.enabled);
            device.and_then(|service| service.device.clone()).map_or(Seat::Nowhere, Seat::Interface)
        });
        let first = list.iter().filter(|service| service.enabled);
        let chosen = first
            .map(|service| self.ours.iter().position(|name| *name == service.name))
            .find_map(|uplink| uplink);
        Look { seats: seats.collect(), chosen }
    }

    /// Puts an uplink's service before those of the others.
    pub(crate) async fn put_first(&mut self, uplink: usize) -> Result<(), OrderError> {
        let name = self.ours.get(uplink).cloned().unwrap_or_default();
        let now = services::names(&self.helper.services().await?);
        if !now.contains(&name) {
            return Err(OrderError::NoService(name));
        }
        let before = match &self.left {
            Some(left) if services::arranged(&now, &left.made) == now => {
                services::arranged(&now, &left.before)
            }
            Some(_) | None => now.clone(),
        };
        let made = services::in_front(&before, &self.ours, &name);
        let restored = made == before;
        if !restored {
            // On disk before it is done: whoever finds it done must find what it was.
            let left = Changed { before, made: made.clone() };
            let text = serde_json::to_string(&left).unwrap_or_default();
            files::write_private(&self.file, &text)?;
            self.left = Some(left);
        }
        if made != now {
            self.helper.order(&made).await?;
        }
        if restored {
            self.forget();
        }
        Ok(())
    }

    /// Nothing is left to undo.
    fn forget(&mut self) {
        if self.left.take().is_none() {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.file) {
            // Found again at the next start, it is compared with the order then.
            tracing::warn!(file = %self.file.display(), %error, "a file could not be removed");
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
