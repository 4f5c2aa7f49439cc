//! A limit on everything that crosses a wire, with its reason.

/// Longest line on the pipe, in bytes without the newline. A text of [`TEXT_CHARS_MAX`] four-byte
/// characters, escaped, with its envelope, stays well below; anything longer is a fault.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Longest frame on the link, in bytes. A frame is a pipe line with an envelope; both share the
/// limit because attachments never travel in either.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest text of a message, in Unicode scalar values. Apple publishes no limit; peers cap
/// themselves at the same figure.
pub const TEXT_CHARS_MAX: usize = 20_000;

/// Attachments of one message.
pub const ATTACHMENTS_MAX: usize = 20;

/// Longest URL of an attachment, in characters: what browsers and caches agree on.
pub const MEDIA_URL_CHARS_MAX: usize = 2_048;

/// Longest name of an attachment, in bytes: file systems take 255, and Messages puts words of its own beside it.
pub const MEDIA_NAME_BYTES_MAX: usize = 200;

/// Longest e-mail address, in bytes (RFC 5321: 64 + 1 + 255, less the brackets of a path).
pub const EMAIL_BYTES_MAX: usize = 254;

/// Longest group conversation id, in bytes; Apple's are `chat` and up to 20 digits or a UUID.
pub const GROUP_ID_BYTES_MAX: usize = 128;

/// Longest name of a service that writes to us, in bytes; business ids are the longest seen.
pub const SERVICE_NAME_BYTES_MAX: usize = 128;

/// Metadata that a tenant may keep with a message, in bytes of its JSON.
pub const METADATA_BYTES_MAX: usize = 4096;

/// Variables of one template: more than any text that people read has.
pub const TEMPLATE_VARIABLES_MAX: usize = 50;

/// Longest name of a variable, in bytes.
pub const VARIABLE_NAME_BYTES_MAX: usize = 64;

/// Longest value of a variable, in Unicode scalar values: a name, an address, a link. A whole text is a template's.
pub const VARIABLE_CHARS_MAX: usize = 1_000;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Events that a bridge may have on the way before the first of them is acknowledged.
pub const EVENT_WINDOW: usize = 256;

/// Phones that one host may announce. A Mac serves one account, a few at the most; a machine of the sandbox as many as
/// `scripts/bench phones` has measured.
pub const PHONES_PER_HOST_MAX: usize = 200;

/// Rows of one page of the public API.
pub const PAGE_ROWS_MAX: u32 = 100;
