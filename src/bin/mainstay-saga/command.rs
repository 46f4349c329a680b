//! What the command line says.

use std::time::Duration;

use mainstay::saga::{
    Order, Payload, Phase, SagaId,
    journal::{Ask, Query},
    postgres::DEFAULT_SCHEMA,
};

use crate::words::Words;

/// What is to be done, and where.
#[derive(Debug)]
pub struct Invocation {
    pub store: String,
    pub schema: String,
    pub ca: Option<String>,
    pub command: Command,
    pub json: bool,
    pub by: String,
    pub wait: Duration,
}

#[derive(Debug)]
pub enum Command {
    List(Query, Option<u32>),
    Audit,
    Stuck,
    Check,
    Show(SagaId),
    Timeline(SagaId),
    Dot(SagaId),
    Mermaid(SagaId),
    Ask(SagaId, What),
    Gc { age: Duration, limit: usize },
}

/// What a request is for, and the name of a message.
#[derive(Debug)]
pub struct What {
    pub ask: Ask,
    pub message: Option<String>,
}

/// The options that each command knows, besides those that all know.
const OPTIONS: &[(&str, &[&str])] = &[
    ("list", &["phase", "open", "definition", "version", "tag", "limit", "json"]),
    ("stuck", &["json"]),
    ("check", &[]),
    ("show", &["json"]),
    ("timeline", &["json"]),
    ("dot", &[]),
    ("mermaid", &[]),
    ("retry", &["by", "wait"]),
    ("resolve", &["output", "by", "wait"]),
    ("reject", &["reason", "by", "wait"]),
    ("undone", &["reason", "by", "wait"]),
    ("cancel", &["reason", "by", "wait"]),
    ("compensate", &["reason", "by", "wait"]),
    ("abandon", &["reason", "by", "wait"]),
    ("signal", &["by", "wait"]),
    ("gc", &["older-than", "limit", "by"]),
    ("audit", &["json"]),
];

impl Invocation {
    /// Reads a command line; `None` when it asks for help.
    pub fn parse(
        arguments: impl Iterator<Item = String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let Some(mut words) = Words::split(arguments)? else { return Ok(None) };
        let name = words.next("a command")?;
        let Some((_, known)) = OPTIONS.iter().find(|(command, _)| *command == name) else {
            return Err(format!("there is no command {name:?}"));
        };
        words.allow(&name, known)?;
        let store = words.option("store").or_else(|| variable("MAINSTAY_SAGA_STORE"));
        let store = store.ok_or("no --store is given")?;
        let by =
            words.option("by").or_else(|| variable("USER")).unwrap_or_else(|| "mainstay-saga".to_owned());
        let wait = words.option("wait").map_or(Ok(Duration::from_secs(5)), |text| duration("wait", &text))?;
        let json = words.flag("json");
        let schema = words.option("schema").or_else(|| variable("MAINSTAY_SAGA_SCHEMA"));
        let schema = schema.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
        let ca = words.option("ca").or_else(|| variable("MAINSTAY_SAGA_CA"));
        let command = command(&name, &mut words)?;
        words.end()?;
        Ok(Some(Invocation { store, schema, ca, command, json, by, wait }))
    }
}

fn command(name: &str, words: &mut Words) -> Result<Command, String> {
    Ok(match name {
        "list" => {
            let mut phases: Vec<Phase> =
                words.options("phase").iter().map(|word| phase(word)).collect::<Result<_, _>>()?;
            if words.flag("open") {
                if !phases.is_empty() {
                    return Err("--open and --phase are one too many".to_owned());
                }
                phases.extend(Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()));
            }
            let version = words.option("version").map(|text| {
                text.parse().map_err(|_| format!("--version needs the number of a version, not {text:?}"))
            });
            let query = Query {
                phases,
                definition: words.option("definition"),
                tag: words.option("tag"),
                after: None,
                limit: number(words, "limit")?,
            };
            Command::List(query, version.transpose()?)
        }
        "stuck" => Command::Stuck,
        "audit" => Command::Audit,
        "check" => Command::Check,
        "show" => Command::Show(id(words)?),
        "timeline" => Command::Timeline(id(words)?),
        "dot" => Command::Dot(id(words)?),
        "mermaid" => Command::Mermaid(id(words)?),
        "gc" => {
            let age = duration("older-than", &words.need("older-than")?)?;
            Command::Gc { age, limit: number(words, "limit")? }
        }
        _ => {
            let id = id(words)?;
            Command::Ask(id, what(name, words)?)
        }
    })
}

fn what(name: &str, words: &mut Words) -> Result<What, String> {
    let order = match name {
        "signal" => {
            let step = words.next("a step")?;
            let message = words.next("the name of the message")?;
            let payload = json(&words.next("the message as JSON")?)?;
            return Ok(What { ask: Ask::Signal { step, payload }, message: Some(message) });
        }
        "retry" => Order::Retry { step: words.maybe() },
        "resolve" => Order::Complete { step: words.next("a step")?, output: json(&words.need("output")?)? },
        "reject" => Order::Reject { step: words.next("a step")?, reason: words.need("reason")? },
        "undone" => Order::Undone { step: words.next("a step")?, reason: words.need("reason")? },
        "cancel" => Order::Cancel { reason: words.need("reason")? },
        "compensate" => Order::Compensate { reason: words.need("reason")? },
        "abandon" => Order::Abandon { reason: words.need("reason")? },
        other => return Err(format!("there is no command {other:?}")),
    };
    Ok(What { ask: Ask::Order(order), message: None })
}

fn id(words: &mut Words) -> Result<SagaId, String> {
    SagaId::new(&words.next("the id of a saga")?).map_err(|error| error.to_string())
}

fn phase(word: &str) -> Result<Phase, String> {
    Phase::from_text(word).ok_or_else(|| {
        let all: Vec<&str> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
        format!("there is no phase {word:?}: there are {}", all.join(", "))
    })
}

/// The text as it is, if it is JSON.
fn json(text: &str) -> Result<Payload, String> {
    serde_json::from_str(text).map_err(|error| format!("{text:?} is not JSON: {error}"))
}

/// 0 when it is not given.
fn number(words: &mut Words, name: &str) -> Result<usize, String> {
    let Some(text) = words.option(name) else { return Ok(0) };
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("--{name} needs a number above zero, not {text:?}")),
        Ok(number) => Ok(number),
    }
}

fn duration(name: &str, text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("--{name} needs a duration with its unit, like \"30d\" or \"5s\", not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Invocation>, String> {
        let words = line.split_whitespace().map(str::to_owned);
        Invocation::parse(words, |_| None)
    }

    #[test]
    fn a_command_line_is_read_whole() {
        let read =
            parse("--store=sqlite:x list --phase stuck --phase parked --limit 5 --json").unwrap().unwrap();
        let Command::List(query, None) = &read.command else { panic!("{read:?}") };
        assert_eq!((&query.phases[..], query.limit), (&[Phase::Stuck, Phase::Parked][..], 5));
        assert!(read.json);
        let read = parse("--store=sqlite:x list --open --definition order --version 2").unwrap().unwrap();
        let Command::List(query, Some(2)) = &read.command else { panic!("{read:?}") };
        assert_eq!((query.phases.len(), query.definition.as_deref()), (5, Some("order")));
        let read = parse("retry --store sqlite:x -- --odd-id step").unwrap().unwrap();
        let Command::Ask(id, What { ask: Ask::Order(Order::Retry { step }), .. }) = &read.command else {
            panic!("{read:?}")
        };
        assert_eq!((id.as_str(), step.as_deref()), ("--odd-id", Some("step")));
        assert!(parse("list --help").unwrap().is_none());
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (line, why) in [
            ("", "a command is missing"),
            ("--store s", "a command is missing"),
            ("--store s dance", "no command \"dance\""),
            ("list", "no --store"),
            ("--store s list --phase odd", "there are running, waiting"),
            ("--store s list --open --phase stuck", "one too many"),
            ("--store s list --version two", "not \"two\""),
            ("--store s list extra", "\"extra\" is one word too many"),
            ("--store s show", "the id of a saga is missing"),
            ("--store s show x --reason y", "show has no option --reason"),
            ("--store s cancel x", "--reason is missing"),
            ("--store s resolve x step --output {", "is not JSON"),
            ("--store s gc --older-than 30", "like \"30d\""),
            ("--store s gc --older-than 30d --limit 0", "above zero"),
            ("--store s cancel x --reason", "--reason needs a value"),
            ("--store s --store t list", "--store is given twice"),
        ] {
            let problem = parse(line).unwrap_err();
            assert!(problem.contains(why), "{line}: {problem}");
        }
    }
}
