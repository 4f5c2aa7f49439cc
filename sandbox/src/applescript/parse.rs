//! Script text → statements, or a syntax error.

use super::{ScriptError, Span};

/// Deepest nesting of blocks and parentheses. The scripts at hand have five; the bound is there
/// so that no input can exhaust the stack.
const DEPTH_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Keyword or name, as written.
    Word(String),
    Text(String),
    Number(i64),
    Symbol(char),
    /// End of a line.
    Newline,
}

/// A compiled script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The name that `on run` gives to the arguments.
    pub(super) argv: Option<String>,
    pub(super) body: Vec<Statement>,
}

/// A statement and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) kind: Kind,
    pub(super) span: Span,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Set {
        name: String,
        value: Expr,
    },
    If {
        branches: Vec<(Condition, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    Tell(Vec<Statement>),
    Timeout {
        seconds: Expr,
        body: Vec<Statement>,
    },
    /// `number` is the name that the handler gives to the error's number.
    Try {
        body: Vec<Statement>,
        number: Option<String>,
        handler: Vec<Statement>,
    },
    SendToParticipant {
        content: Expr,
        address: Expr,
        account: Expr,
    },
    SendToChat {
        content: Expr,
        guid: Expr,
    },
    Quit,
    CloseWindows,
    Return(Option<Expr>),
    Log(Expr),
    Value(Expr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) left: Expr,
    pub(super) right: Expr,
    pub(super) negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    Text(String),
    Number(i64),
    Name(String),
    Item(i64, Box<Expr>),
    Account(String),
    CountAccounts,
    ConnectionStatus(Box<Expr>),
    /// Whether Messages runs: the one question that does not start it.
    IsRunning,
    AsText(Box<Expr>),
    /// The id of the chat of this id: asks Messages whether it knows the chat.
    IdOfChat(Box<Expr>),
    PosixFile(Box<Expr>),
    AsAlias(Box<Expr>),
    Joined(Box<Expr>, Box<Expr>),
}

/// Compiles a script.
pub fn parse(script: &str) -> Result<Script, ScriptError> {
    let tokens = lex(script)?;
    let end = script.chars().count();
    Parser { tokens: &tokens, at: 0, end, in_tell: false, depth: 0 }.script()
}

fn syntax(message: impl Into<String>, span: Span) -> ScriptError {
    ScriptError { syntax: true, number: -2741, message: message.into(), span }
}

fn lex(script: &str) -> Result<Vec<(Token, Span)>, ScriptError> {
    let mut tokens = Vec::new();
    let mut chars = script.chars().enumerate().peekable();
    while let Some((from, c)) = chars.next() {
        let next_is = |chars: &mut std::iter::Peekable<_>, wanted: char| {
            chars.peek().is_some_and(|(_, next): &(usize, char)| *next == wanted)
        };
        let one = Span { from, to: from + 1 };
        match c {
            '\n' | '\r' => tokens.push((Token::Newline, one)),
            '#' => skip_line(&mut chars),
            '-' if next_is(&mut chars, '-') => skip_line(&mut chars),
            '(' if next_is(&mut chars, '*') => {
                let mut depth = 1_usize;
                let mut last = ' ';
                chars.next();
                while depth > 0 {
                    let Some((_, c)) = chars.next() else {
                        return Err(syntax("Expected “*)” but found end of script.", one));
                    };
                    match (last, c) {
                        ('(', '*') => depth += 1,
                        ('*', ')') => depth -= 1,
                        (_, c) => {
                            last = c;
                            continue;
                        }
                    }
                    last = ' ';
                }
            }
            // A line that ends in ¬ goes on in the next.
            '¬' => {
                while chars.peek().is_some_and(|(_, c)| *c != '\n' && c.is_whitespace()) {
                    chars.next();
                }
                if !next_is(&mut chars, '\n') {
                    return Err(syntax("Expected end of line after “¬”.", one));
                }
                chars.next();
            }
            '"' => {
                let mut text = String::new();
                let to = loop {
                    match chars.next() {
                        Some((at, '"')) => break at + 1,
                        Some((_, '\\')) => match chars.next() {
                            Some((_, 'n')) => text.push('\n'),
                            Some((_, 't')) => text.push('\t'),
                            Some((_, c @ ('"' | '\\'))) => text.push(c),
                            Some((_, _)) | None => {
                                return Err(syntax("Expected “\"” but found unknown token.", one));
                            }
                        },
                        Some((_, c)) => text.push(c),
                        None => {
                            return Err(syntax("Expected “\"” but found end of script.", one));
                        }
                    }
                };
                tokens.push((Token::Text(text), Span { from, to }));
            }
            '(' | ')' | '=' | '≠' | '&' => tokens.push((Token::Symbol(c), one)),
            c if c.is_ascii_digit() => {
                let mut digits = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| c.is_ascii_alphanumeric()) {
                    digits.push(c);
                }
                let span = Span { from, to: from + digits.len() };
                if let Ok(number) = digits.parse() {
                    tokens.push((Token::Number(number), span));
                } else if digits.eq_ignore_ascii_case("1st") {
                    tokens.push((Token::Word(digits), span));
                } else {
                    return Err(syntax(format!("Expected expression but found “{digits}”."), span));
                }
            }
            c if c.is_alphabetic() || c == '_' => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                let span = Span { from, to: from + word.chars().count() };
                tokens.push((Token::Word(word), span));
            }
            c if c.is_whitespace() => {}
            _ => return Err(syntax("Expected expression but found unknown token.", one)),
        }
    }
    Ok(tokens)
}

fn skip_line(chars: &mut std::iter::Peekable<impl Iterator<Item = (usize, char)>>) {
    while chars.next_if(|(_, c)| *c != '\n' && *c != '\r').is_some() {}
}

/// Words that cannot be names.
const RESERVED: &[&str] = &[
    "on",
    "end",
    "set",
    "to",
    "tell",
    "application",
    "if",
    "then",
    "else",
    "is",
    "not",
    "item",
    "of",
    "whose",
    "where",
    "send",
    "return",
    "log",
    "with",
    "timeout",
    "seconds",
    "second",
    "as",
    "count",
    "account",
    "accounts",
    "participant",
    "buddy",
    "chat",
    "id",
    "service",
    "try",
    "error",
    "repeat",
    "and",
    "or",
    "using",
    "from",
    "it",
    "me",
    "my",
    "true",
    "false",
    "text",
    "file",
    "every",
    "some",
    "first",
    "last",
    "run",
    "script",
    "global",
    "local",
    "property",
    "considering",
    "ignoring",
    "exit",
    "copy",
    "get",
    "do",
    "connection",
    "status",
    "posix",
    "alias",
    "number",
];

struct Parser<'a> {
    tokens: &'a [(Token, Span)],
    at: usize,
    end: usize,
    in_tell: bool,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn span(&self) -> Span {
        let end = Span { from: self.end, to: self.end };
        self.tokens.get(self.at).map_or(end, |(_, span)| *span)
    }

    /// The error that something else was expected here.
    fn expected(&self, what: &str) -> ScriptError {
        let found = match self.peek() {
            None => "end of script".to_owned(),
            Some(Token::Newline) => "end of line".to_owned(),
            Some(Token::Word(word)) => format!("“{word}”"),
            Some(Token::Text(_)) => "“\"”".to_owned(),
            Some(Token::Number(_)) => "number".to_owned(),
            Some(Token::Symbol(symbol)) => format!("“{symbol}”"),
        };
        syntax(format!("Expected {what} but found {found}."), self.span())
    }

    fn word_at(&self, offset: usize) -> Option<&'a str> {
        match self.tokens.get(self.at.checked_add(offset)?) {
            Some((Token::Word(word), _)) => Some(word),
            Some(_) | None => None,
        }
    }

    fn sees(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, wanted)| {
            self.word_at(offset).is_some_and(|word| word.eq_ignore_ascii_case(wanted))
        })
    }

    fn takes(&mut self, words: &[&str]) -> bool {
        let sees = self.sees(words);
        if sees {
            self.at += words.len();
        }
        sees
    }

    fn word(&mut self, wanted: &str) -> Result<(), ScriptError> {
        if self.takes(&[wanted]) { Ok(()) } else { Err(self.expected(&format!("“{wanted}”"))) }
    }

    fn takes_symbol(&mut self, wanted: char) -> bool {
        let sees = matches!(self.peek(), Some(Token::Symbol(symbol)) if *symbol == wanted);
        if sees {
            self.at += 1;
        }
        sees
    }

    fn name(&mut self) -> Result<String, ScriptError> {
        match self.peek() {
            Some(Token::Word(word))
                if !RESERVED.iter().any(|reserved| word.eq_ignore_ascii_case(reserved)) =>
            {
                self.at += 1;
                Ok(word.to_lowercase())
            }
            Some(_) | None => Err(self.expected("identifier")),
        }
    }

    fn newlines(&mut self) {
        while self.peek() == Some(&Token::Newline) {
            self.at += 1;
        }
    }

    fn end_of_line(&mut self) -> Result<(), ScriptError> {
        match self.peek() {
            None => Ok(()),
            Some(Token::Newline) => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(self.expected("end of line")),
        }
    }

    /// `end`, `end run` and so on, which close a block.
    fn end_of(&mut self, what: &str) -> Result<(), ScriptError> {
        self.word("end")?;
        self.takes(&[what]);
        self.end_of_line()
    }

    fn script(mut self) -> Result<Script, ScriptError> {
        self.newlines();
        let script = if self.takes(&["on", "run"]) {
            let argv = match self.peek() {
                Some(Token::Newline) | None => None,
                Some(_) => Some(self.name()?),
            };
            self.end_of_line()?;
            let body = self.block(|parser| parser.sees(&["end"]))?;
            self.end_of("run")?;
            Script { argv, body }
        } else {
            Script { argv: None, body: self.block(|parser| parser.peek().is_none())? }
        };
        self.newlines();
        if self.peek().is_some() { Err(self.expected("end of script")) } else { Ok(script) }
    }

    /// Statements up to where `ends`, which is not consumed.
    fn block(&mut self, ends: fn(&Self) -> bool) -> Result<Vec<Statement>, ScriptError> {
        self.deeper()?;
        let mut body = Vec::new();
        loop {
            self.newlines();
            if ends(self) {
                break;
            }
            if self.peek().is_none() {
                return Err(self.expected("“end”"));
            }
            body.push(self.statement()?);
        }
        self.depth -= 1;
        Ok(body)
    }

    fn deeper(&mut self) -> Result<(), ScriptError> {
        if self.depth >= DEPTH_MAX {
            return Err(syntax("The script is nested too deeply.", self.span()));
        }
        self.depth += 1;
        Ok(())
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        let from = self.span().from;
        let kind = self.kind()?;
        // The span of a block is what it spans; of a line, the line.
        let last = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        let to = last.map_or(from, |(token, span)| match token {
            Token::Newline => span.from,
            Token::Word(_) | Token::Text(_) | Token::Number(_) | Token::Symbol(_) => span.to,
        });
        Ok(Statement { kind, span: Span { from, to } })
    }

    fn kind(&mut self) -> Result<Kind, ScriptError> {
        if self.takes(&["set"]) {
            let name = self.name()?;
            self.word("to")?;
            let value = self.expr()?;
            self.end_of_line()?;
            return Ok(Kind::Set { name, value });
        }
        for (words, kind) in
            [(&["quit"][..], Kind::Quit), (&["close", "windows"], Kind::CloseWindows)]
        {
            if self.in_tell && self.takes(words) {
                self.end_of_line()?;
                return Ok(kind);
            }
        }
        if self.takes(&["tell"]) {
            return self.tell();
        }
        if self.takes(&["if"]) {
            return self.branches();
        }
        if self.takes(&["with", "timeout", "of"]) {
            let seconds = self.expr()?;
            if !self.takes(&["seconds"]) {
                self.word("second")?;
            }
            self.end_of_line()?;
            let body = self.block(|parser| parser.sees(&["end"]))?;
            self.end_of("timeout")?;
            return Ok(Kind::Timeout { seconds, body });
        }
        if self.takes(&["try"]) {
            return self.attempt();
        }
        if self.takes(&["send"]) {
            return self.send();
        }
        if self.takes(&["return"]) {
            let value = match self.peek() {
                None | Some(Token::Newline) => None,
                Some(_) => Some(self.expr()?),
            };
            self.end_of_line()?;
            return Ok(Kind::Return(value));
        }
        if self.takes(&["log"]) {
            let value = self.expr()?;
            self.end_of_line()?;
            return Ok(Kind::Log(value));
        }
        let value = self.expr()?;
        self.end_of_line()?;
        Ok(Kind::Value(value))
    }

    fn tell(&mut self) -> Result<Kind, ScriptError> {
        self.word("application")?;
        match self.peek() {
            Some(Token::Text(name)) if name.eq_ignore_ascii_case("Messages") => self.at += 1,
            Some(_) | None => return Err(self.expected("“\"Messages\"”")),
        }
        let outside = std::mem::replace(&mut self.in_tell, true);
        let body = if self.takes(&["to"]) {
            self.deeper()?;
            let statement = self.statement()?;
            self.depth -= 1;
            vec![statement]
        } else {
            self.end_of_line()?;
            let body = self.block(|parser| parser.sees(&["end"]))?;
            self.end_of("tell")?;
            body
        };
        self.in_tell = outside;
        Ok(Kind::Tell(body))
    }

    fn branches(&mut self) -> Result<Kind, ScriptError> {
        let ends: fn(&Self) -> bool = |parser| parser.sees(&["end"]) || parser.sees(&["else"]);
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let condition = self.condition()?;
            self.word("then")?;
            self.end_of_line()?;
            branches.push((condition, self.block(ends)?));
            if self.takes(&["else", "if"]) {
                continue;
            }
            if self.takes(&["else"]) {
                self.end_of_line()?;
                otherwise = self.block(|parser| parser.sees(&["end"]))?;
            }
            break;
        }
        self.end_of("if")?;
        Ok(Kind::If { branches, otherwise })
    }

    /// `try` and what follows it.
    fn attempt(&mut self) -> Result<Kind, ScriptError> {
        self.end_of_line()?;
        let body = self.block(|parser| parser.sees(&["end"]) || parser.sees(&["on", "error"]))?;
        let (mut number, mut handler) = (None, Vec::new());
        if self.takes(&["on", "error"]) {
            if self.takes(&["number"]) {
                number = Some(self.name()?);
            }
            self.end_of_line()?;
            handler = self.block(|parser| parser.sees(&["end"]))?;
        }
        self.end_of("try")?;
        Ok(Kind::Try { body, number, handler })
    }

    fn condition(&mut self) -> Result<Condition, ScriptError> {
        if self.takes(&["application"]) {
            match self.peek() {
                Some(Token::Text(name)) if name.eq_ignore_ascii_case("Messages") => self.at += 1,
                Some(_) | None => return Err(self.expected("“\"Messages\"”")),
            }
            self.word("is")?;
            let negated = self.takes(&["not"]);
            self.word("running")?;
            let right = Expr::Text("true".to_owned());
            return Ok(Condition { left: Expr::IsRunning, right, negated });
        }
        let left = self.expr()?;
        let negated = if self.takes(&["is", "not"]) || self.takes_symbol('≠') {
            true
        } else if self.takes(&["is"]) || self.takes_symbol('=') {
            false
        } else {
            return Err(self.expected("“is”"));
        };
        Ok(Condition { left, right: self.expr()?, negated })
    }

    /// Words of Messages' own dictionary mean nothing outside of its `tell`.
    fn told(&self) -> Result<(), ScriptError> {
        if self.in_tell { Ok(()) } else { Err(self.expected("expression")) }
    }

    fn send(&mut self) -> Result<Kind, ScriptError> {
        self.told()?;
        let content = self.expr()?;
        self.word("to")?;
        let kind = if self.takes(&["participant"]) || self.takes(&["buddy"]) {
            let address = self.expr()?;
            self.word("of")?;
            Kind::SendToParticipant { content, address, account: self.expr()? }
        } else if self.takes(&["chat", "id"]) {
            Kind::SendToChat { content, guid: self.expr()? }
        } else {
            return Err(self.expected("“participant” or “chat id”"));
        };
        self.end_of_line()?;
        Ok(kind)
    }

    fn expr(&mut self) -> Result<Expr, ScriptError> {
        let mut expr = self.operand()?;
        // Each operator adds a level to what is built, and must not nest it without bound.
        for _ in 0..DEPTH_MAX {
            if !self.takes_symbol('&') {
                return Ok(expr);
            }
            expr = Expr::Joined(Box::new(expr), Box::new(self.operand()?));
        }
        Err(syntax("The script is nested too deeply.", self.span()))
    }

    fn operand(&mut self) -> Result<Expr, ScriptError> {
        let mut expr = self.simple()?;
        while self.takes(&["as"]) {
            if self.takes(&["alias"]) {
                if !matches!(expr, Expr::AsAlias(_)) {
                    expr = Expr::AsAlias(Box::new(expr));
                }
                continue;
            }
            if !self.takes(&["text"]) {
                self.word("string")?;
            }
            // Twice makes no difference.
            if !matches!(expr, Expr::AsText(_)) {
                expr = Expr::AsText(Box::new(expr));
            }
        }
        Ok(expr)
    }

    fn simple(&mut self) -> Result<Expr, ScriptError> {
        self.deeper()?;
        let expr = self.simple_inside();
        self.depth -= 1;
        expr
    }

    fn simple_inside(&mut self) -> Result<Expr, ScriptError> {
        match self.peek() {
            Some(Token::Text(text)) => {
                self.at += 1;
                Ok(Expr::Text(text.clone()))
            }
            Some(Token::Number(number)) => {
                self.at += 1;
                Ok(Expr::Number(*number))
            }
            Some(Token::Symbol('(')) => {
                self.at += 1;
                let inside = self.expr()?;
                if self.takes_symbol(')') { Ok(inside) } else { Err(self.expected("“)”")) }
            }
            Some(Token::Symbol(_) | Token::Newline) | None => Err(self.expected("expression")),
            Some(Token::Word(_)) => self.words(),
        }
    }

    fn words(&mut self) -> Result<Expr, ScriptError> {
        if self.takes(&["item"]) {
            let Some(Token::Number(index)) = self.peek() else {
                return Err(self.expected("number"));
            };
            self.at += 1;
            self.word("of")?;
            return Ok(Expr::Item(*index, Box::new(self.simple()?)));
        }
        if self.takes(&["posix", "file"]) {
            return Ok(Expr::PosixFile(Box::new(self.simple()?)));
        }
        if self.sees(&["id", "of", "chat", "id"]) {
            self.told()?;
            self.at += 4;
            return Ok(Expr::IdOfChat(Box::new(self.simple()?)));
        }
        if self.sees(&["1st"]) || self.sees(&["first"]) {
            self.told()?;
            self.at += 1;
            // `service` is what an account was called before macOS 13; Messages still takes it.
            if !self.takes(&["account"]) {
                self.word("service")?;
            }
            self.word("whose")?;
            self.word("service")?;
            // In the dictionary the property is two words; the lexer sees two as well.
            self.word("type")?;
            if !self.takes_symbol('=') {
                self.word("is")?;
            }
            // As written, because an error about it quotes it.
            let service = self.word_at(0).unwrap_or_default().to_owned();
            self.name()?;
            return Ok(Expr::Account(service));
        }
        if self.sees(&["count"]) {
            self.told()?;
            self.at += 1;
            self.takes(&["of"]);
            self.word("accounts")?;
            return Ok(Expr::CountAccounts);
        }
        if self.sees(&["connection", "status"]) {
            self.told()?;
            self.at += 2;
            self.word("of")?;
            return Ok(Expr::ConnectionStatus(Box::new(self.simple()?)));
        }
        Ok(Expr::Name(self.name()?))
    }
}
