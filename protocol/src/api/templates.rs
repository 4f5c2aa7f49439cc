//! Templates: texts with variables, kept in versions.

use std::collections::BTreeMap;

use super::{ContentReport, Deserialize, Serialize, UnixMs};
use crate::TemplateId;

bodies! {
/// A text with variables, as it stands in its newest version or the one asked for.
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// Its name.
    pub name: String,
    /// Which version this is; versions count up from 1.
    pub version: u32,
    /// The text, with variables as `{{name}}`; `\{{` stands for the two braces themselves.
    pub text: String,
    /// The variables of the text, in the order of their first use.
    pub variables: Vec<String>,
    /// What stands for variables that are not given.
    pub defaults: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When this version was made, or the template was last renamed.
    pub updated_at: UnixMs,
}

/// One version of a template. It never changes.
pub struct TemplateVersion {
    /// Its number, from 1.
    pub version: u32,
    /// The text.
    pub text: String,
    /// The variables of the text.
    pub variables: Vec<String>,
    /// What stands for variables that are not given.
    pub defaults: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// `POST /v1/templates`.
#[serde(deny_unknown_fields)]
pub struct CreateTemplate {
    /// Its name, 1 to 100 characters; no two templates of a tenant have the same.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub name: String,
    /// The text, 1 to 20,000 characters, with variables as `{{name}}`: letters, digits and `_`, up to 64 characters, not
    /// beginning with a digit, at most 50 of them. `\{{` stands for the two braces themselves.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 20_000, example = "Hello {{name}}."))]
    pub text: String,
    /// What stands for variables that are not given, each up to 1,000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!({"name": "you"})))]
    pub defaults: Option<BTreeMap<String, String>>,
}

/// `PATCH /v1/templates/{id}`. What is left out stays as it is; another text, or other defaults, are a new version.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct UpdateTemplate {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub name: Option<String>,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 20_000))]
    pub text: Option<String>,
    /// What stands for variables that are not given: all of them, in place of those before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!({})))]
    pub defaults: Option<BTreeMap<String, String>>,
}

/// Which template a text is made from, and with what.
#[serde(deny_unknown_fields)]
pub struct UseTemplate {
    /// Which template.
    pub id: TemplateId,
    /// Which version; the newest when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub version: Option<u32>,
    /// What stands for each variable, up to 1,000 characters. One that the version does not have is refused, and so is a
    /// message of which one is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<BTreeMap<String, String>>,
}

/// The template that a text was made from.
pub struct UsedTemplate {
    /// Which template.
    pub id: TemplateId,
    /// Which version.
    pub version: u32,
}

/// `POST /v1/templates/{id}/preview`.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct PreviewTemplate {
    /// Which version; the newest when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub version: Option<u32>,
    /// What stands for each variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<BTreeMap<String, String>>,
}

/// What a template would send.
pub struct TemplatePreview {
    /// Which version.
    pub version: u32,
    /// The whole text.
    pub text: String,
    /// How it would travel as SMS.
    pub content: ContentReport,
    /// The rules about content allow it, first messages to somebody included.
    pub allowed: bool,
    /// Which of them it breaks: `blocked_words`, `blocked_words_for_all`, `link_in_first_message`, `too_many_segments`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}
}
