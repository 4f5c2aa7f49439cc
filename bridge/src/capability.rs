//! Over which channels an address can be reached, from what was exchanged with it. Pure.
//!
//! Nothing in AppleScript tells it, and Apple's own directory is asked by private interfaces only. What is
//! left is history: a message that came over a channel, or left over it, shows that it works; error 22 shows that
//! the address is not registered there. Of each channel the newest of these counts.

use protocol::Channel;
use protocol::pipe::ChannelCapability;

use crate::chatdb::Contact;

/// `FZErrorType` 22, in public headers of Messages' daemon: the remote user does not exist.
const NOT_REGISTERED: i64 = 22;

/// What is known, one entry a channel of which something is. `is_ours` says whether a guid is that of one of our
/// own sends.
pub(crate) fn known(
    contacts: &[Contact],
    is_ours: impl Fn(&str) -> bool,
) -> Vec<ChannelCapability> {
    let mut known = Vec::new();
    for channel in [Channel::Imessage, Channel::Rcs, Channel::Sms] {
        let telling = contacts
            .iter()
            .filter(|contact| contact.channel == channel)
            .filter_map(|contact| Some((contact, shows(contact)?)));
        if let Some((newest, able)) = telling.max_by_key(|(contact, _)| contact.at) {
            known.push(ChannelCapability {
                channel,
                able,
                at: newest.at,
                own_result: newest.own && is_ours(&newest.guid),
            });
        }
    }
    known
}

/// Whether one message shows that its channel works, or that it does not; nothing where it failed for another
/// reason or is still on its way.
fn shows(contact: &Contact) -> Option<bool> {
    if !contact.own || (contact.is_sent && contact.error == 0) {
        return Some(true);
    }
    (contact.error == NOT_REGISTERED).then_some(false)
}

#[cfg(test)]
mod tests {
    use protocol::UnixMs;

    use super::*;

    fn contact(channel: Channel, at: i64) -> Contact {
        Contact {
            guid: format!("{channel}-{at}"),
            channel,
            own: true,
            error: 0,
            is_sent: true,
            at: UnixMs(at),
        }
    }

    fn told(contacts: &[Contact]) -> Vec<(Channel, bool, i64, bool)> {
        let ours = |guid: &str| guid.ends_with('5');
        known(contacts, ours)
            .into_iter()
            .map(|c| (c.channel, c.able, c.at.0, c.own_result))
            .collect()
    }

    #[test]
    fn the_newest_message_that_shows_something_counts() {
        let failed =
            |error, at| Contact { error, is_sent: false, ..contact(Channel::Imessage, at) };
        let inbound = |channel, at| Contact { own: false, is_sent: false, ..contact(channel, at) };
        assert_eq!(told(&[]), []);
        assert_eq!(told(&[failed(22, 5)]), [(Channel::Imessage, false, 5, true)]);
        assert_eq!(
            told(&[failed(22, 1), contact(Channel::Imessage, 3), failed(3, 4)]),
            [(Channel::Imessage, true, 3, false)],
            "a fault of the network says nothing"
        );
        assert_eq!(
            told(&[contact(Channel::Imessage, 1), failed(22, 2), contact(Channel::Sms, 2)]),
            [(Channel::Imessage, false, 2, false), (Channel::Sms, true, 2, false)],
            "somebody gave the iPhone away"
        );
        assert_eq!(
            told(&[inbound(Channel::Rcs, 15), failed(0, 20)]),
            [(Channel::Rcs, true, 15, false)],
            "what came in is no result of ours, and what is on its way shows nothing"
        );
    }
}
