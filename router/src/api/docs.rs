//! The API's document as a page for people: one HTML file without scripts and without anything from elsewhere, written
//! once from the very document that is served at `/openapi.json`.

use pulldown_cmark::{Event, Options, Parser, html};
use serde_json::{Map, Value};

const STYLE: &str = include_str!("docs/style.css");

/// The page may load nothing, run nothing and be framed by nobody.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// The methods of a path, in the order in which people look for them.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// One operation with where it stands.
#[derive(Clone, Copy)]
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    body: &'a Value,
}

impl Operation<'_> {
    fn anchor(&self) -> String {
        let named = self.body["operationId"].as_str().unwrap_or(self.path);
        format!("{}-{}", self.method, identifier(named))
    }

    fn has_tag(&self, tag: &str) -> bool {
        let tags = self.body["tags"].as_array();
        tags.is_some_and(|tags| tags.iter().any(|own| own == tag))
    }
}

/// The whole page.
pub(super) fn page(document: &Value) -> String {
    let empty = Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    let operations: Vec<Operation<'_>> = paths
        .iter()
        .flat_map(|(path, item)| {
            METHODS.iter().filter_map(move |method| {
                item.get(*method).map(|body| Operation { method, path, body })
            })
        })
        .collect();
    let tags: Vec<&Value> = document["tags"].as_array().into_iter().flatten().collect();
    let schemas =
        document.pointer("/components/schemas").and_then(Value::as_object).unwrap_or(&empty);
    let info = &document["info"];
    let mut out = String::with_capacity(256 * 1_024);
    let title = escaped(info["title"].as_str().unwrap_or_default());
    let version = escaped(info["version"].as_str().unwrap_or_default());
    put(
        &mut out,
        format_args!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} API</title><style>{STYLE}</style></head><body><nav aria-label=\"Operations\">"
        ),
    );
    for tag in &tags {
        let name = tag["name"].as_str().unwrap_or_default();
        put(&mut out, format_args!("<h2>{}</h2>", escaped(name)));
        for operation in operations.iter().filter(|operation| operation.has_tag(name)) {
            let summary = operation.body["summary"].as_str().unwrap_or(operation.path);
            put(
                &mut out,
                format_args!(
                    "<a href=\"#{}\"><span class=\"method {m}\">{m}</span><span>{}</span></a>",
                    operation.anchor(),
                    escaped(summary),
                    m = operation.method
                ),
            );
        }
    }
    out.push_str("<h2>more</h2><a href=\"#schemas\">Schemas</a><a href=\"/openapi.json\">OpenAPI document</a></nav><main>");
    put(&mut out, format_args!("<h1>{title} API <small>{version}</small></h1>"));
    out.push_str(&markdown(info["description"].as_str().unwrap_or_default()));
    for tag in &tags {
        let name = tag["name"].as_str().unwrap_or_default();
        put(
            &mut out,
            format_args!("<section id=\"tag-{}\"><h2>{}</h2>", identifier(name), escaped(name)),
        );
        out.push_str(&markdown(tag["description"].as_str().unwrap_or_default()));
        for operation in operations.iter().filter(|operation| operation.has_tag(name)) {
            put_operation(&mut out, operation);
        }
        out.push_str("</section>");
    }
    out.push_str("<section id=\"schemas\"><h2>Schemas</h2>");
    for (name, schema) in schemas {
        put(
            &mut out,
            format_args!("<article id=\"schema-{}\"><h3>{}</h3>", identifier(name), escaped(name)),
        );
        out.push_str(&markdown(schema["description"].as_str().unwrap_or_default()));
        put_schema(&mut out, schema);
        out.push_str("</article>");
    }
    out.push_str("</section></main></body></html>\n");
    out
}

fn put_operation(out: &mut String, operation: &Operation<'_>) {
    let body = operation.body;
    let summary = escaped(body["summary"].as_str().unwrap_or_default());
    put(
        out,
        format_args!(
            "<article id=\"{}\"><h3>{summary}</h3><div class=\"route\"><span class=\"method {m}\">{m}</span>\
         <span>{}</span>",
            operation.anchor(),
            escaped(operation.path),
            m = operation.method
        ),
    );
    let keys: Vec<&str> = body["security"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .flat_map(Map::keys)
        .map(String::as_str)
        .collect();
    let needs = match keys.first() {
        Some(&"api_key") => "with a tenant's key",
        Some(&"admin_token") => "with the operator's token",
        Some(other) => other,
        None => "without a key",
    };
    put(out, format_args!("<span class=\"key\">{}</span></div>", escaped(needs)));
    out.push_str(&markdown(body["description"].as_str().unwrap_or_default()));
    let parameters: Vec<&Value> = body["parameters"].as_array().into_iter().flatten().collect();
    if !parameters.is_empty() {
        out.push_str("<h4>Parameters</h4><div class=\"wide\"><table>");
        for parameter in parameters {
            let name = parameter["name"].as_str().unwrap_or_default();
            let place = parameter["in"].as_str().unwrap_or_default();
            let must = parameter["required"] == true;
            let text = parameter["description"].as_str().unwrap_or_default();
            put_row(out, name, must, &format!("{place}, {}", kind(&parameter["schema"])), text);
        }
        out.push_str("</table></div>");
    }
    if let Some(content) = body.pointer("/requestBody/content").and_then(Value::as_object) {
        out.push_str("<h4>Body</h4>");
        for (media, of) in content {
            put(
                out,
                format_args!("<p><code>{}</code> {}</p>", escaped(media), kind(&of["schema"])),
            );
        }
    }
    if let Some(responses) = body["responses"].as_object() {
        out.push_str("<h4>Answers</h4><div class=\"wide\"><table>");
        for (status, response) in responses {
            let shapes: Vec<String> = response["content"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(_, of)| kind(&of["schema"]))
                .collect();
            let text = response["description"].as_str().unwrap_or_default();
            put_row(out, status, false, &shapes.join(", "), text);
        }
        out.push_str("</table></div>");
    }
    out.push_str("</article>");
}

fn put_schema(out: &mut String, schema: &Value) {
    if let Some(parts) = schema["allOf"].as_array() {
        for part in parts {
            match part["$ref"].as_str() {
                Some(_) => put(out, format_args!("<p>All of {}, and:</p>", kind(part))),
                None => put_schema(out, part),
            }
        }
        return;
    }
    let Some(properties) = schema["properties"].as_object() else {
        put(out, format_args!("<p>{}</p>", kind(schema)));
        return;
    };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("<div class=\"wide\"><table>");
    for (name, property) in properties {
        let text = property["description"].as_str().unwrap_or_default();
        put_row(out, name, required.contains(&name.as_str()), &kind(property), text);
    }
    out.push_str("</table></div>");
}

/// `kind` is HTML already.
fn put_row(out: &mut String, name: &str, must: bool, kind: &str, text: &str) {
    let must = if must { " <span class=\"must\">required</span>" } else { "" };
    put(
        out,
        format_args!(
            "<tr><td><code>{}</code>{must}</td><td class=\"kind\">{kind}</td><td>{}</td></tr>",
            escaped(name),
            markdown(text)
        ),
    );
}

/// What values a schema allows, in a few words, as HTML.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#schema-{}\">{}</a>", identifier(name), escaped(name));
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = schema[word].as_array() {
            let parts: Vec<String> = parts.iter().map(kind).collect();
            return parts.join(if word == "allOf" { " and " } else { " or " });
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("<code>{}</code>", escaped(word.as_str().unwrap_or_default())))
            .collect();
        return words.join(", ");
    }
    let types = match &schema["type"] {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        Value::String(one) => one.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => "anything".to_owned(),
    };
    let mut kind = escaped(&types);
    if schema["items"].is_object() {
        put(&mut kind, format_args!(" of {}", self::kind(&schema["items"])));
    }
    if let Some(format) = schema["format"].as_str() {
        put(&mut kind, format_args!(" ({})", escaped(format)));
    }
    for (name, says) in [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "characters, at least"),
        ("maxLength", "characters, at most"),
        ("maxItems", "entries, at most"),
    ] {
        if !schema[name].is_null() {
            put(&mut kind, format_args!(", {says} {}", schema[name]));
        }
    }
    kind
}

/// Our own documentation comments: nobody else's text comes here, and raw HTML in them is shown as text all the same.
fn markdown(text: &str) -> String {
    let events = Parser::new_ext(text, Options::ENABLE_TABLES).map(|event| {
        if let Event::Html(raw) | Event::InlineHtml(raw) = event { Event::Text(raw) } else { event }
    });
    let mut out = String::new();
    html::push_html(&mut out, events);
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

/// What can stand behind a `#`.
fn identifier(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.push_str(&what.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> (Value, String) {
        let document = serde_json::to_value(crate::api::openapi()).unwrap();
        let page = page(&document);
        (document, page)
    }

    #[test]
    fn every_operation_and_every_schema_of_the_document_is_on_the_page() {
        let (document, page) = whole();
        let mut operations = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, body) in item.as_object().unwrap() {
                operations += 1;
                let anchor =
                    format!("<article id=\"{}\">", Operation { method, path, body }.anchor());
                assert_eq!(page.matches(&anchor).count(), 1, "{method} {path}: {anchor}");
            }
        }
        assert!(operations > 50, "{operations}");
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(
                page.contains(&format!("<article id=\"schema-{}\">", identifier(name))),
                "{name}"
            );
        }
    }

    #[test]
    fn every_link_leads_somewhere_on_the_page() {
        let (_, page) = whole();
        let mut links = 0;
        for link in page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            links += 1;
            match link.strip_prefix('#') {
                Some(anchor) => assert!(page.contains(&format!("id=\"{anchor}\"")), "{link}"),
                None => assert_eq!(link, "/openapi.json"),
            }
        }
        assert!(links > 100, "{links}");
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_runs_nothing() {
        let (_, page) = whole();
        for word in ["<script", "src=", "@import", "url(", "<link", "onclick", "javascript:"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn a_document_cannot_bring_markup_of_its_own() {
        let document = serde_json::json!({
            "info": {"title": "<b>", "description": "a <script>x</script>"},
            "tags": [{"name": "<i>"}],
            "paths": {"/<u>": {"get": {"tags": ["<i>"], "summary": "<s>", "responses": {}}}},
            "components": {"schemas": {"<q>": {"type": "string", "enum": ["<em>"]}}},
        });
        let page = page(&document);
        for word in ["<b>", "<script", "<i>", "<u>", "<s>", "<q>", "<em>"] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
