//! Over which channels a message is tried, and in which order. Pure.
//!
//! What was asked for comes first: a channel, and what may be tried after it. Of these, what the recipient cannot have
//! falls away: an e-mail address is known to iMessage alone, and a channel that was seen not to reach somebody a short
//! while ago is not tried again at once. Where nothing would remain, it is tried all the same: a provable failure
//! answers the tenant, a guess does not.

use protocol::{Channel, ChannelChoice, Recipient};

/// Channels of `auto`, best first.
const AUTO: [Channel; 3] = [Channel::Imessage, Channel::Rcs, Channel::Sms];

/// What is known of the channels of a recipient, and new enough to go by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    imessage: Option<bool>,
    rcs: Option<bool>,
    sms: Option<bool>,
}

impl Abilities {
    /// Takes in one channel.
    pub fn learn(&mut self, channel: Channel, able: bool) {
        let known = match channel {
            Channel::Imessage => &mut self.imessage,
            Channel::Rcs => &mut self.rcs,
            Channel::Sms => &mut self.sms,
        };
        *known = Some(able);
    }

    /// Whether the channel reaches the recipient; `None` where that is not known.
    pub const fn of(self, channel: Channel) -> Option<bool> {
        match channel {
            Channel::Imessage => self.imessage,
            Channel::Rcs => self.rcs,
            Channel::Sms => self.sms,
        }
    }
}

/// The channels that were asked for, in order and each once. `fallback` takes the place of what follows by itself: RCS
/// and SMS after `auto`, nothing after a channel that was named.
pub fn asked(channel: ChannelChoice, fallback: Option<&[Channel]>) -> Vec<Channel> {
    let first = channel.only().unwrap_or(Channel::Imessage);
    let rest = match (fallback, channel) {
        (Some(fallback), _) => fallback,
        (None, ChannelChoice::Auto) => AUTO.get(1..).unwrap_or_default(),
        (None, ChannelChoice::Imessage | ChannelChoice::Rcs | ChannelChoice::Sms) => &[],
    };
    let mut route = vec![first];
    for channel in rest {
        if !route.contains(channel) {
            route.push(*channel);
        }
    }
    route
}

/// The channels that can reach the recipient at all. Only iMessage knows e-mail addresses and, by their ids, groups of
/// any service; a group's own service is the one that Messages uses.
pub fn possible(mut asked: Vec<Channel>, recipient: &Recipient) -> Vec<Channel> {
    match recipient {
        Recipient::Number(_) => {}
        // Nothing is sent to a service: no channel reaches it.
        Recipient::Service(_) => asked.clear(),
        Recipient::Email(_) | Recipient::Group(_) => {
            asked.retain(|channel| *channel == Channel::Imessage);
        }
    }
    asked
}

/// Leaves out what is known not to reach the recipient, unless nothing would remain.
pub fn likely(mut possible: Vec<Channel>, known: Abilities) -> Vec<Channel> {
    let may = |channel: &Channel| known.of(*channel) != Some(false);
    if possible.iter().any(may) {
        possible.retain(may);
    }
    possible
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMESSAGE: Channel = Channel::Imessage;
    const RCS: Channel = Channel::Rcs;
    const SMS: Channel = Channel::Sms;

    #[test]
    fn what_was_asked_for_is_tried_in_its_order() {
        for (channel, fallback, route) in [
            (ChannelChoice::Auto, None, vec![IMESSAGE, RCS, SMS]),
            (ChannelChoice::Auto, Some(vec![]), vec![IMESSAGE]),
            (ChannelChoice::Auto, Some(vec![SMS]), vec![IMESSAGE, SMS]),
            (ChannelChoice::Imessage, None, vec![IMESSAGE]),
            (ChannelChoice::Imessage, Some(vec![SMS, RCS, SMS]), vec![IMESSAGE, SMS, RCS]),
            (ChannelChoice::Rcs, Some(vec![SMS]), vec![RCS, SMS]),
            (ChannelChoice::Sms, None, vec![SMS]),
            (ChannelChoice::Sms, Some(vec![SMS, IMESSAGE]), vec![SMS, IMESSAGE]),
        ] {
            assert_eq!(asked(channel, fallback.as_deref()), route, "{channel} {fallback:?}");
        }
    }

    #[test]
    fn an_address_or_a_group_has_imessage_only() {
        let all = || AUTO.to_vec();
        for (recipient, route) in [
            ("+12025550143", all()),
            ("anna@example.com", vec![IMESSAGE]),
            ("group:chat123", vec![IMESSAGE]),
        ] {
            assert_eq!(possible(all(), &recipient.parse().unwrap()), route, "{recipient}");
        }
        assert_eq!(possible(vec![SMS], &"anna@example.com".parse().unwrap()), []);
    }

    #[test]
    fn what_failed_a_short_while_ago_is_left_out_while_something_else_remains() {
        let mut known = Abilities::default();
        assert_eq!(likely(AUTO.to_vec(), known), AUTO);
        known.learn(IMESSAGE, false);
        assert_eq!(likely(AUTO.to_vec(), known), [RCS, SMS]);
        assert_eq!(likely(vec![IMESSAGE], known), [IMESSAGE], "nothing else was asked for");
        known.learn(RCS, false);
        known.learn(SMS, true);
        assert_eq!(likely(AUTO.to_vec(), known), [SMS]);
        known.learn(SMS, false);
        assert_eq!(likely(AUTO.to_vec(), known), AUTO, "better a failure than a guess");
    }

    proptest! {
        #[test]
        fn nothing_is_tried_that_was_not_asked_for(
            order in prop::collection::vec(prop::sample::select(AUTO.to_vec()), 0..4),
            known in prop::collection::vec((prop::sample::select(AUTO.to_vec()), any::<bool>()), 0..4),
        ) {
            let mut abilities = Abilities::default();
            for (channel, able) in known {
                abilities.learn(channel, able);
            }
            let asked = asked(ChannelChoice::Rcs, Some(&order));
            let route = likely(asked.clone(), abilities);
            prop_assert!(!route.is_empty());
            let kept: Vec<_> = asked.iter().filter(|channel| route.contains(channel)).copied().collect();
            prop_assert_eq!(route, kept, "a part of it, in its order");
        }
    }
}
