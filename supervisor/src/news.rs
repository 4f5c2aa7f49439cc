//! What one task tells others through a watch, who hear of it only when it is another thing than before.

use tokio::sync::watch;

/// Tells whoever listens, unless it is what they know already.
pub(crate) fn tell<T: PartialEq>(listeners: &watch::Sender<T>, new: T) {
    listeners.send_if_modified(|old| {
        let changed = *old != new;
        if changed {
            *old = new;
        }
        changed
    });
}
