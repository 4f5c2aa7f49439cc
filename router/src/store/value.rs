//! Values into and out of statements, in the five shapes that every engine has.

use protocol::time::UnixMs;

use super::StoreError;

/// A parameter, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// BIGINT: numbers, booleans (0 and 1), milliseconds since 1970.
    Integer(i64),
    /// TEXT: ids, words, JSON.
    Text(String),
    /// BLOB: hashes and keys.
    Blob(Vec<u8>),
}

/// A column of an answered row, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// BIGINT.
    Integer(i64),
    /// TEXT.
    Text(&'a str),
    /// BLOB.
    Blob(&'a [u8]),
}

/// What can be a parameter.
pub trait ToValue {
    /// The value as a parameter.
    fn to_value(&self) -> Value;
}

/// What can be read from a column.
pub trait FromColumn: Sized {
    /// The value in the column, or [`StoreError::Corrupt`] where it has another shape.
    fn from_column(column: Column<'_>) -> Result<Self, StoreError>;
}

fn wrong(expected: &str, column: Column<'_>) -> StoreError {
    // The kind alone: a column may hold the text of a message.
    let found = match column {
        Column::Null => "NULL",
        Column::Integer(_) => "an integer",
        Column::Text(_) => "text",
        Column::Blob(_) => "a blob",
    };
    StoreError::Corrupt(format!("expected {expected}, found {found}"))
}

impl ToValue for Value {
    fn to_value(&self) -> Value {
        self.clone()
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, ToValue::to_value)
    }
}

impl<T: FromColumn> FromColumn for Option<T> {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        match column {
            Column::Null => Ok(None),
            Column::Integer(_) | Column::Text(_) | Column::Blob(_) => {
                T::from_column(column).map(Some)
            }
        }
    }
}

impl ToValue for str {
    fn to_value(&self) -> Value {
        Value::Text(self.to_owned())
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl FromColumn for String {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        match column {
            Column::Text(text) => Ok(text.to_owned()),
            Column::Null | Column::Integer(_) | Column::Blob(_) => Err(wrong("text", column)),
        }
    }
}

impl ToValue for [u8] {
    fn to_value(&self) -> Value {
        Value::Blob(self.to_vec())
    }
}

impl ToValue for Vec<u8> {
    fn to_value(&self) -> Value {
        Value::Blob(self.clone())
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Value {
        Value::Blob(self.to_vec())
    }
}

impl FromColumn for Vec<u8> {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        match column {
            Column::Blob(bytes) => Ok(bytes.to_vec()),
            Column::Null | Column::Integer(_) | Column::Text(_) => Err(wrong("a blob", column)),
        }
    }
}

impl<const N: usize> FromColumn for [u8; N] {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        let Column::Blob(bytes) = column else { return Err(wrong("a blob", column)) };
        Self::try_from(bytes).map_err(|_length| {
            StoreError::Corrupt(format!("expected {N} bytes, found {}", bytes.len()))
        })
    }
}

impl ToValue for bool {
    fn to_value(&self) -> Value {
        Value::Integer(i64::from(*self))
    }
}

impl FromColumn for bool {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        i64::from_column(column).map(|number| number != 0)
    }
}

impl ToValue for i64 {
    fn to_value(&self) -> Value {
        Value::Integer(*self)
    }
}

impl FromColumn for i64 {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        match column {
            Column::Integer(number) => Ok(number),
            Column::Null | Column::Text(_) | Column::Blob(_) => Err(wrong("an integer", column)),
        }
    }
}

macro_rules! small_integers {
    ($($integer:ty),*) => {$(
        impl ToValue for $integer {
            fn to_value(&self) -> Value {
                Value::Integer(i64::from(*self))
            }
        }
        impl FromColumn for $integer {
            fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
                let number = i64::from_column(column)?;
                Self::try_from(number).map_err(|_range| {
                    StoreError::Corrupt(format!("{number} is out of range"))
                })
            }
        }
    )*};
}
small_integers!(i32, u8, u16, u32);

macro_rules! large_integers {
    ($($integer:ty),*) => {$(
        impl ToValue for $integer {
            /// Counters (epochs, seqs, sequences) never come near 2^63; one that claims to is pinned there, where it
            /// can only lose comparisons that it should lose.
            fn to_value(&self) -> Value {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
        }
        impl FromColumn for $integer {
            fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
                let number = i64::from_column(column)?;
                Self::try_from(number).map_err(|_range| {
                    StoreError::Corrupt(format!("{number} is out of range"))
                })
            }
        }
    )*};
}
large_integers!(u64, usize);

impl ToValue for UnixMs {
    fn to_value(&self) -> Value {
        Value::Integer(self.0)
    }
}

impl FromColumn for UnixMs {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        i64::from_column(column).map(UnixMs)
    }
}

macro_rules! words {
    ($($word:ty),* $(,)?) => {$(
        impl ToValue for $word {
            fn to_value(&self) -> Value {
                Value::Text(self.as_str().to_owned())
            }
        }
    )*};
}
words!(
    protocol::TenantId,
    protocol::PhoneId,
    protocol::HostId,
    protocol::MessageId,
    protocol::KeyId,
    protocol::EndpointId,
    protocol::EventId,
    protocol::DeliveryId,
    protocol::TemplateId,
    protocol::BatchId,
    protocol::E164,
    protocol::Channel,
    protocol::ChannelChoice,
    protocol::Class,
    protocol::Status,
    protocol::Reason,
    protocol::api::Direction,
    protocol::api::BatchState,
    protocol::link::PhoneState,
);

macro_rules! parsed {
    ($($word:ty),* $(,)?) => {$(
        impl FromColumn for $word {
            fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
                match column {
                    Column::Text(text) => text.parse().map_err(|error| {
                        StoreError::Corrupt(format!("{}: {error}", stringify!($word)))
                    }),
                    Column::Null | Column::Integer(_) | Column::Blob(_) => {
                        Err(wrong("text", column))
                    }
                }
            }
        }
    )*};
}
parsed!(
    protocol::TenantId,
    protocol::PhoneId,
    protocol::HostId,
    protocol::MessageId,
    protocol::KeyId,
    protocol::EndpointId,
    protocol::EventId,
    protocol::DeliveryId,
    protocol::TemplateId,
    protocol::BatchId,
    protocol::E164,
    protocol::Recipient,
    protocol::Channel,
    protocol::ChannelChoice,
    protocol::Class,
    protocol::Status,
);

impl ToValue for protocol::Recipient {
    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }
}

impl FromColumn for protocol::Reason {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        String::from_column(column).map(|code| Self::of(&code))
    }
}

impl FromColumn for protocol::api::Direction {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        match String::from_column(column)?.as_str() {
            "outbound" => Ok(Self::Outbound),
            "inbound" => Ok(Self::Inbound),
            other => Err(StoreError::Corrupt(format!("no direction is called {other:?}"))),
        }
    }
}

impl FromColumn for protocol::link::PhoneState {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        let word = String::from_column(column)?;
        Self::of(&word)
            .ok_or_else(|| StoreError::Corrupt(format!("no phone state is called {word:?}")))
    }
}

/// A value kept as JSON in a TEXT column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: serde::Serialize> ToValue for Json<T> {
    /// # Panics
    ///
    /// When `T` cannot be written as JSON (a map with keys that are not text): a fault in the type, not in the data.
    fn to_value(&self) -> Value {
        Value::Text(serde_json::to_string(&self.0).expect("the type can be written as JSON"))
    }
}

impl<T: serde::de::DeserializeOwned> FromColumn for Json<T> {
    fn from_column(column: Column<'_>) -> Result<Self, StoreError> {
        let text = String::from_column(column)?;
        serde_json::from_str(&text)
            .map(Self)
            .map_err(|error| StoreError::Corrupt(format!("JSON at column {}", error.column())))
    }
}
