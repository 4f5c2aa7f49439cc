//! Statements → Apple events and a result.

use std::collections::HashMap;

use super::parse::{Condition, Expr, Kind, Statement};
use super::{Content, EventError, Messages, ScriptError, Span, parse};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(i64),
    List(Vec<String>),
    Account(String),
    /// `POSIX file …`: a path that nobody has looked for.
    File(String),
    Alias(String),
}

/// What a block came to: its last value, and whether `return` ended the script.
enum Flow {
    Next(Option<Value>),
    Return(Option<Value>),
}

/// Compiles and runs a script; what osascript would print, if anything.
pub fn run(
    script: &str,
    argv: &[String],
    messages: &mut dyn Messages,
) -> Result<Option<String>, ScriptError> {
    let script = parse(script)?;
    let mut names = HashMap::new();
    if let Some(name) = script.argv {
        names.insert(name, Value::List(argv.to_vec()));
    }
    let mut runner = Runner { names, messages, timeout_s: None };
    match runner.block(&script.body)? {
        Flow::Next(value) | Flow::Return(value) => Ok(value.map(|value| printed(&value))),
    }
}

/// A value as osascript prints it.
fn printed(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::List(items) => items.join(", "),
        Value::Account(service) => format!("account of {service}"),
        Value::File(path) => format!("file {path}"),
        Value::Alias(path) => format!("alias {path}"),
    }
}

fn execution(number: i32, message: impl Into<String>, span: Span) -> ScriptError {
    ScriptError { syntax: false, number, message: message.into(), span }
}

fn messages_got(error: EventError, span: Span) -> ScriptError {
    match error.number {
        // A name that is not defined is AppleScript's own finding, a refusal is the system's.
        -2753 | -1743 => execution(error.number, error.message, span),
        number => execution(number, format!("Messages got an error: {}", error.message), span),
    }
}

/// What `send` takes.
fn sendable(value: &Value, span: Span) -> Result<Content<'_>, ScriptError> {
    match value {
        Value::Text(text) => Ok(Content::Text(text)),
        Value::File(path) | Value::Alias(path) => Ok(Content::File(path)),
        Value::Number(_) | Value::List(_) | Value::Account(_) => {
            Err(execution(-1700, "Can’t make that into type text.", span))
        }
    }
}

struct Runner<'a> {
    names: HashMap<String, Value>,
    messages: &'a mut dyn Messages,
    timeout_s: Option<u64>,
}

impl Runner<'_> {
    fn block(&mut self, body: &[Statement]) -> Result<Flow, ScriptError> {
        let mut last = None;
        for statement in body {
            match self.statement(statement)? {
                Flow::Next(value) => last = value,
                done @ Flow::Return(_) => return Ok(done),
            }
        }
        Ok(Flow::Next(last))
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, ScriptError> {
        let span = statement.span;
        let value = match &statement.kind {
            Kind::Set { name, value } => {
                let value = self.value(value, span)?;
                self.names.insert(name.clone(), value.clone());
                Some(value)
            }
            Kind::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.holds(condition, span)? {
                        return self.block(body);
                    }
                }
                return self.block(otherwise);
            }
            Kind::Tell(body) => return self.block(body),
            Kind::Timeout { seconds, body } => {
                let Value::Number(seconds) = self.value(seconds, span)? else {
                    return Err(execution(-1700, "Can’t make that into type integer.", span));
                };
                let inside = Some(u64::try_from(seconds).unwrap_or(0));
                let outside = std::mem::replace(&mut self.timeout_s, inside);
                let flow = self.block(body);
                self.timeout_s = outside;
                return flow;
            }
            Kind::Try { body, number, handler } => match self.block(body) {
                Err(error) => {
                    if let Some(name) = number {
                        self.names.insert(name.clone(), Value::Number(error.number.into()));
                    }
                    return self.block(handler);
                }
                flow @ Ok(_) => return flow,
            },
            Kind::SendToParticipant { content, address, account } => {
                let content = self.value(content, span)?;
                let address = self.text(address, span)?;
                let Value::Account(service) = self.value(account, span)? else {
                    return Err(execution(-1700, "Can’t make that into type account.", span));
                };
                self.messages
                    .send_to_participant(
                        &service,
                        &address,
                        sendable(&content, span)?,
                        self.timeout_s,
                    )
                    .map_err(|error| messages_got(error, span))?;
                None
            }
            Kind::SendToChat { content, guid } => {
                let content = self.value(content, span)?;
                let guid = self.text(guid, span)?;
                self.messages
                    .send_to_chat(&guid, sendable(&content, span)?, self.timeout_s)
                    .map_err(|error| messages_got(error, span))?;
                None
            }
            Kind::Quit => {
                self.messages.quit(self.timeout_s).map_err(|error| messages_got(error, span))?;
                None
            }
            Kind::CloseWindows => {
                self.messages
                    .close_windows(self.timeout_s)
                    .map_err(|error| messages_got(error, span))?;
                None
            }
            Kind::Return(value) => {
                let value = value.as_ref().map(|value| self.value(value, span)).transpose()?;
                return Ok(Flow::Return(value));
            }
            Kind::Log(value) => {
                let value = self.value(value, span)?;
                self.messages.log(&printed(&value));
                None
            }
            Kind::Value(value) => Some(self.value(value, span)?),
        };
        Ok(Flow::Next(value))
    }

    /// AppleScript compares texts without regard to case.
    fn holds(&mut self, condition: &Condition, span: Span) -> Result<bool, ScriptError> {
        let left = self.value(&condition.left, span)?;
        let right = self.value(&condition.right, span)?;
        let equal = match (&left, &right) {
            (Value::Text(left), Value::Text(right)) => left.to_lowercase() == right.to_lowercase(),
            (left, right) => left == right,
        };
        Ok(equal != condition.negated)
    }

    fn text(&mut self, expr: &Expr, span: Span) -> Result<String, ScriptError> {
        match self.value(expr, span)? {
            Value::Text(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            Value::List(_) | Value::Account(_) | Value::File(_) | Value::Alias(_) => {
                Err(execution(-1700, "Can’t make that into type text.", span))
            }
        }
    }

    fn value(&mut self, expr: &Expr, span: Span) -> Result<Value, ScriptError> {
        match expr {
            Expr::Text(text) => Ok(Value::Text(text.clone())),
            Expr::Number(number) => Ok(Value::Number(*number)),
            Expr::Name(name) => self.names.get(name).cloned().ok_or_else(|| {
                execution(-2753, format!("The variable {name} is not defined."), span)
            }),
            Expr::Item(index, list) => {
                let Value::List(items) = self.value(list, span)? else {
                    return Err(execution(-1728, format!("Can’t get item {index}."), span));
                };
                let at = usize::try_from(*index).ok().and_then(|index| index.checked_sub(1));
                let item = at.and_then(|at| items.get(at)).cloned();
                item.map(Value::Text).ok_or_else(|| {
                    execution(-1728, format!("Can’t get item {index} of argv."), span)
                })
            }
            Expr::Account(service) => {
                self.messages
                    .account(service, self.timeout_s)
                    .map_err(|error| messages_got(error, span))?;
                Ok(Value::Account(service.clone()))
            }
            Expr::CountAccounts => self
                .messages
                .count_accounts(self.timeout_s)
                .map(Value::Number)
                .map_err(|error| messages_got(error, span)),
            Expr::IsRunning => Ok(Value::Text(self.messages.is_running().to_string())),
            Expr::ConnectionStatus(account) => {
                let Value::Account(service) = self.value(account, span)? else {
                    return Err(execution(-1728, "Can’t get connection status.", span));
                };
                self.messages
                    .connection_status(&service, self.timeout_s)
                    .map(Value::Text)
                    .map_err(|error| messages_got(error, span))
            }
            Expr::IdOfChat(guid) => {
                let guid = self.text(guid, span)?;
                self.messages
                    .chat(&guid, self.timeout_s)
                    .map_err(|error| messages_got(error, span))?;
                Ok(Value::Text(guid))
            }
            Expr::PosixFile(path) => Ok(Value::File(self.text(path, span)?)),
            Expr::AsAlias(inside) => match self.value(inside, span)? {
                Value::File(path) if self.messages.is_file(&path) => Ok(Value::Alias(path)),
                Value::File(path) => {
                    Err(execution(-43, format!("File {path} wasn’t found."), span))
                }
                alias @ Value::Alias(_) => Ok(alias),
                Value::Text(_) | Value::Number(_) | Value::List(_) | Value::Account(_) => {
                    Err(execution(-1700, "Can’t make that into type alias.", span))
                }
            },
            Expr::Joined(left, right) => {
                let (left, right) = (self.text(left, span)?, self.text(right, span)?);
                Ok(Value::Text(left + &right))
            }
            Expr::AsText(inside) => match self.value(inside, span)? {
                text @ (Value::Text(_) | Value::Number(_)) => Ok(Value::Text(printed(&text))),
                Value::List(_) | Value::Account(_) | Value::File(_) | Value::Alias(_) => {
                    Err(execution(-1700, "Can’t make that into type text.", span))
                }
            },
        }
    }
}
