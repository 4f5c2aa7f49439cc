//! `template`: texts with variables.

use std::collections::BTreeMap;

use clap::Subcommand;
use protocol::TemplateId;
use protocol::api::{
    CreateTemplate, PreviewTemplate, Template, TemplatePreview, TemplateVersion, UpdateTemplate,
};
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    messages::{new_key, text},
    screen::{Screen, beginning, printable, time},
};

const TEMPLATES: &str = "/v1/templates";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the templates, newest first
    List,
    /// Shows one with its versions
    Show {
        /// The template
        id: TemplateId,
    },
    /// Makes one
    Create {
        /// Its name
        #[arg(long)]
        name: String,
        /// Its text, with variables as {{name}}; - reads it from standard input
        #[arg(long)]
        text: String,
        /// What stands for a variable that is not given, as NAME=VALUE; may be repeated
        #[arg(long = "default", value_name = "NAME=VALUE", value_parser = pair)]
        defaults: Vec<(String, String)>,
    },
    /// Changes its name, or makes a new version with another text
    Change {
        /// The template
        id: TemplateId,
        /// Its name
        #[arg(long)]
        name: Option<String>,
        /// Its text; - reads it from standard input
        #[arg(long)]
        text: Option<String>,
        /// What stands for variables that are not given, in place of what stood before; may be repeated
        #[arg(long = "default", value_name = "NAME=VALUE", value_parser = pair)]
        defaults: Vec<(String, String)>,
    },
    /// Writes one out without sending it, with its SMS segments and what the rules about content say
    Preview {
        /// The template
        id: TemplateId,
        /// Which version; the newest when left out
        #[arg(long, value_name = "VERSION")]
        template_version: Option<u32>,
        /// What stands for a variable, as NAME=VALUE; may be repeated
        #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair)]
        variables: Vec<(String, String)>,
    },
    /// Deletes one; what was made from it stays
    Delete {
        /// The template
        id: TemplateId,
    },
}

/// `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Pairs as a map, where there are any.
pub(crate) fn map(pairs: Vec<(String, String)>) -> Option<BTreeMap<String, String>> {
    (!pairs.is_empty()).then(|| pairs.into_iter().collect())
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    let one = |id: &TemplateId| format!("{TEMPLATES}/{id}");
    match command {
        Command::List => {
            let page = client.list(Who::Tenant, TEMPLATES, &[], usize::MAX).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<Template>(&page)?.into_iter().map(|template| {
                [
                    template.id.to_string(),
                    template.name,
                    template.version.to_string(),
                    template.variables.join(", "),
                    beginning(&template.text),
                ]
            });
            let columns = ["TEMPLATE", "NAME", "VERSION", "VARIABLES", "TEXT"];
            screen.table(columns, rows.collect(), "there are no templates")
        }
        Command::Show { id } => {
            let answer = client.call(&Request::get(Who::Tenant, one(&id))).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let template: Template = typed(answer)?;
            screen.line(&format!("{}  {}  version {}", id, template.name, template.version))?;
            screen.line(&printable(&template.text))?;
            for (name, value) in &template.defaults {
                screen.line(&format!("  {name} = {}", printable(value)))?;
            }
            let path = format!("{}/versions", one(&id));
            let page = client.list(Who::Tenant, &path, &[], usize::MAX).await?;
            let rows = typed_rows::<TemplateVersion>(&page)?.into_iter().map(|version| {
                [version.version.to_string(), time(version.created_at), beginning(&version.text)]
            });
            screen.table(["VERSION", "SINCE", "TEXT"], rows.collect(), "there are no versions")
        }
        Command::Create { name, text: words, defaults } => {
            let body = CreateTemplate { name, text: text(words)?, defaults: map(defaults) };
            let request = Request::post(Who::Tenant, TEMPLATES).body(&body)?;
            changed(screen, client, request.idempotency_key(new_key())).await
        }
        Command::Change { id, name, text: words, defaults } => {
            let words = words.map(text).transpose()?;
            let body = UpdateTemplate { name, text: words, defaults: map(defaults) };
            changed(screen, client, Request::patch(Who::Tenant, one(&id)).body(&body)?).await
        }
        Command::Preview { id, template_version, variables } => {
            let body = PreviewTemplate { version: template_version, variables: map(variables) };
            let path = format!("{}/preview", one(&id));
            let answer = client.call(&Request::post(Who::Tenant, path).body(&body)?).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let preview: TemplatePreview = typed(answer)?;
            screen.line(&printable(&preview.text))?;
            let content = &preview.content;
            screen.line(&format!(
                "version {}: {} characters, {} SMS segments ({}){}",
                preview.version,
                content.characters,
                content.segments,
                content.encoding,
                if content.links { ", with a link" } else { "" }
            ))?;
            match preview.explanation {
                None => screen.line("the rules about content allow it"),
                Some(why) => screen.line(&format!("it would be blocked: {why}")),
            }
        }
        Command::Delete { id } => {
            client.call(&Request::delete(Who::Tenant, one(&id))).await?;
            if screen.is_json() {
                return screen.json(&json!({ "deleted": id }));
            }
            screen.line(&format!("deleted {id}"))
        }
    }
}

async fn changed(screen: &mut Screen, client: &Client, request: Request) -> Result<(), Failure> {
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let template: Template = typed(answer)?;
    screen.line(&format!("{}  {}  version {}", template.id, template.name, template.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_cut_at_its_first_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        pair("a").unwrap_err();
    }
}
