//! Classes: what rules apply to a message, and how urgent it is.

use crate::code::codes;

codes! {
    /// What a message is for; the order is that of urgency, most urgent first.
    pub enum Class {
        /// A one-time code that its reader is waiting for.
        Otp = "otp",
        /// About something that its reader did or bought.
        Transactional = "transactional",
        /// An answer in a conversation that the other side began.
        Conversational = "conversational",
        /// Everything else, and the default: all rules apply.
        Marketing = "marketing",
    }
}

impl Class {
    /// 0 for the most urgent; what queues sort by.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Otp => 0,
            Self::Transactional => 1,
            Self::Conversational => 2,
            Self::Marketing => 3,
        }
    }
}
