//! Cursor pages: `?limit=&cursor=`, `{data, next_cursor, has_more}`. A cursor is opaque to callers.

use std::collections::BTreeMap;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use protocol::TenantId;
use protocol::api::{FieldError, Page};
use protocol::limits::PAGE_ROWS_MAX;

use super::fields::{must_be_one_of, word_of};
use crate::error::ApiError;

/// Rows of a page when the caller does not say.
const PAGE_ROWS: u32 = 50;
/// Longest cursor: what we make is far shorter.
const CURSOR_CHARS_MAX: usize = 512;

/// Query parameters on their way to becoming checked values.
#[derive(Debug)]
pub(crate) struct Query {
    left: BTreeMap<String, String>,
    errors: Vec<FieldError>,
    /// Rows of a page.
    pub(crate) limit: u32,
    /// What the cursor stands for.
    pub(crate) after: Option<String>,
}

impl Query {
    pub(crate) fn new(raw: Option<&str>) -> Self {
        let mut query =
            Self { left: BTreeMap::new(), errors: Vec::new(), limit: PAGE_ROWS, after: None };
        for (name, value) in url::form_urlencoded::parse(raw.unwrap_or_default().as_bytes()) {
            if query.left.insert(name.to_string(), value.into_owned()).is_some() {
                query.wrong(&name, "repeated", "It is given twice.");
            }
        }
        if let Some(text) = query.left.remove("limit") {
            match text.parse() {
                Ok(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => query.limit = limit,
                Ok(_) | Err(_) => query.wrong(
                    "limit",
                    "out_of_range",
                    format!("It must be a whole number from 1 to {PAGE_ROWS_MAX}."),
                ),
            }
        }
        if let Some(text) = query.left.remove("cursor") {
            match decoded(&text) {
                Some(after) => query.after = Some(after),
                None => query.wrong("cursor", "invalid_cursor", "It is not a cursor of ours."),
            }
        }
        query
    }

    fn wrong(&mut self, name: &str, code: &str, detail: impl Into<String>) {
        self.errors.push(FieldError {
            pointer: name.chars().take(100).collect(),
            code: code.to_owned(),
            detail: detail.into(),
        });
    }

    /// A parameter that parses into a type of its own.
    pub(crate) fn parsed<T>(&mut self, name: &str, code: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.left.remove(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(name, code, format!("It is {error}."));
                None
            }
        }
    }

    /// A parameter that is a word of a closed list.
    pub(crate) fn one_of<T>(&mut self, name: &str, code: &str, all: &[T]) -> Option<T>
    where
        T: Copy + std::fmt::Display,
    {
        let text = self.left.remove(name)?;
        let word = word_of(&text, all);
        if word.is_none() {
            self.wrong(name, code, must_be_one_of(name, all));
        }
        word
    }

    /// Everything that was wrong, or the window that is asked for.
    pub(crate) fn finish(mut self) -> Result<Window, ApiError> {
        let unknown: Vec<String> = self.left.keys().take(20).cloned().collect();
        for name in unknown {
            self.wrong(&name, "unknown_parameter", "There is no such parameter.");
        }
        if self.errors.is_empty() {
            return Ok(Window { limit: self.limit, after: self.after });
        }
        Err(ApiError::invalid(self.errors))
    }
}

/// Which rows of a list are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) limit: u32,
    pub(crate) after: Option<String>,
}

impl Window {
    /// The cursor of a list that is ordered by ids of one kind; one of another list is refused.
    pub(crate) fn after_id<T: FromStr>(&self) -> Result<Option<String>, ApiError> {
        match self.after.as_deref().map(str::parse::<T>) {
            Some(Err(_)) => Err(foreign_cursor()),
            Some(Ok(_)) | None => Ok(self.after.clone()),
        }
    }

    /// The cursor of a list that is ordered by something else, as that; one of another list is refused.
    pub(crate) fn after_parsed<T: FromStr>(&self) -> Result<Option<T>, ApiError> {
        let place = self.after.as_deref().map(str::parse::<T>).transpose();
        place.map_err(|_of_another_list| foreign_cursor())
    }
}

/// The cursor is none that this list gave.
fn foreign_cursor() -> ApiError {
    ApiError::invalid(vec![FieldError {
        pointer: "cursor".to_owned(),
        code: "invalid_cursor".to_owned(),
        detail: "It is not a cursor of this list.".to_owned(),
    }])
}

/// The only parameters are those of a page.
pub(crate) fn window(raw: Option<&str>) -> Result<Window, ApiError> {
    Query::new(raw).finish()
}

/// The only parameters are those of a page, and whose rows are wanted: everybody's where no tenant is named.
pub(crate) fn of_tenant(raw: Option<&str>) -> Result<(Option<TenantId>, Window), ApiError> {
    let mut query = Query::new(raw);
    let tenant = query.parsed("tenant", "invalid_id");
    Ok((tenant, query.finish()?))
}

/// A page of `rows`, of which there is one more than the limit where there is a next page. `place` names a row.
pub(crate) fn page<T>(mut rows: Vec<T>, limit: u32, place: impl Fn(&T) -> String) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| has_more).map(|row| cursor(&place(row)));
    Page { data: rows, next_cursor, has_more }
}

/// A place as it stands in a cursor.
pub(crate) fn cursor(place: &str) -> String {
    BASE64URL_NOPAD.encode(place.as_bytes())
}

fn decoded(cursor: &str) -> Option<String> {
    if cursor.is_empty() || cursor.len() > CURSOR_CHARS_MAX {
        return None;
    }
    let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    // A row may be named by what people are called: a service, a person.
    (!text.contains(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_to_where_the_page_ended() {
        let rows: Vec<String> = ["c", "b", "a"].map(ToOwned::to_owned).into();
        let first = page(rows, 2, Clone::clone);
        assert_eq!(first.data, ["c", "b"]);
        assert!(first.has_more);
        let cursor = first.next_cursor.unwrap();
        let next = window(Some(&format!("limit=2&cursor={cursor}"))).unwrap();
        assert_eq!(next, Window { limit: 2, after: Some("b".to_owned()) });
        // Services are called as they please.
        let named = "service:Åkes Café AB".to_owned();
        let cursor = super::cursor(&named);
        let next = window(Some(&format!("cursor={cursor}"))).unwrap();
        assert_eq!(next.after, Some(named));
        let last = page(vec!["a".to_owned()], 2, Clone::clone);
        assert_eq!((last.next_cursor, last.has_more), (None, false));
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let after = Some("ten_00000000000000000000000000".to_owned());
        let window = Window { limit: 1, after: after.clone() };
        assert_eq!(window.after_id::<TenantId>().unwrap(), after);
        window.after_id::<protocol::MessageId>().unwrap_err();
    }

    #[test]
    fn bad_parameters_are_refused() {
        for bad in [
            "limit=0",
            "limit=101",
            "limit=x",
            "cursor=",
            "cursor=%20",
            "cursor=AA",
            "x=1",
            "limit=1&limit=2",
        ] {
            window(Some(bad)).unwrap_err();
        }
    }
}
