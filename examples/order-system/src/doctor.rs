//! `doctor`: what every variable does, where its value is from, and whether what it names answers.

use std::{path::Path, time::Duration};

use order_kit::{
    BoxError,
    context::{GRPC, LISTENERS, SERVICES},
    db::{Db, Place},
    env::{self, Env, VARIABLES, Variable},
};

use crate::{messages, remote::Remote};

/// How long whatever is named may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints it all; how many of the things that are needed do not answer.
///
/// # Errors
///
/// That the data's folder cannot be used.
pub async fn doctor(env: &Env, data: &Path) -> Result<usize, BoxError> {
    println!("{:<30} {:<10} value", "variable", "source");
    for variable in VARIABLES {
        let (source, value) = match env.get(variable.name) {
            Some(value) => ("set", shown(variable, &value)),
            None if variable.default.is_empty() => ("-", String::new()),
            None => ("default", variable.default.to_owned()),
        };
        println!("{:<30} {source:<10} {value}", variable.name);
        let otherwise = match source {
            "set" if !variable.default.is_empty() => format!(" (default: {})", variable.default),
            _ => String::new(),
        };
        println!("{:<30}            {}{otherwise}", "", variable.what);
    }
    println!();
    let mut broken = 0;
    let mut say = |name: &str, answer: Result<String, String>| match answer {
        Ok(what) => println!("ok    {name}: {what}"),
        Err(why) => {
            broken += 1;
            println!("FAIL  {name}: {why}");
        }
    };
    say(env::DATABASE_URL, database(env, data).await);
    say(env::RABBITMQ_URL, broker(env, data).await);
    if let Some(url) = env.get(env::LEGACY_RABBITMQ_URL) {
        let theirs = env.clone().with(env::RABBITMQ_URL, url);
        say(env::LEGACY_RABBITMQ_URL, broker(&theirs, data).await);
    }
    if let Some(url) = env.get(env::REDIS_URL) {
        say(env::REDIS_URL, redis(&url).await);
    }
    if let Some(endpoint) = env.get(env::OTEL_EXPORTER_OTLP_ENDPOINT) {
        say(env::OTEL_EXPORTER_OTLP_ENDPOINT, reachable(&endpoint, 4_318).await);
    }
    for known in SERVICES.iter().chain(LISTENERS) {
        if let Some(url) = env.get(known.variable) {
            say(known.variable, service(&url, known.name, env).await);
        }
    }
    let by_grpc = GRPC.iter().map(|it| (it.variable, it.port(3_000)));
    for (name, port) in by_grpc.chain([(env::LEGACY_URL, 80)]) {
        if let Some(url) = env.get(name) {
            say(name, reachable(&url, port).await);
        }
    }
    for name in [env::GATEWAY_TLS_CERT, env::GATEWAY_TLS_KEY] {
        if let Some(path) = env.get(name) {
            say(
                name,
                std::fs::read(&path)
                    .map(|_| format!("{path} can be read"))
                    .map_err(|error| format!("{path}: {error}")),
            );
        }
    }
    let secrets = [env::INTERNAL_TOKEN, env::JWT_SECRET];
    say(env::HOST, env::guarded(env, &secrets).map(|()| "the secrets will do for it".to_owned()));
    for secret in secrets {
        if env.get(secret).is_none() {
            println!("note  {secret}: the default is for development only");
        }
    }
    Ok(broken)
}

/// A secret without what is secret in it: of an address the password, and whatever stands behind a `?`.
fn shown(variable: &Variable, value: &str) -> String {
    const SCHEMES: [&str; 6] = ["postgres", "postgresql", "amqp", "amqps", "redis", "rediss"];
    if !variable.secret || ["sqlite:", "memory:"].contains(&value) {
        return value.to_owned();
    }
    let Some((scheme, rest)) = value.split_once("://").filter(|(scheme, _)| SCHEMES.contains(scheme)) else {
        return "…".to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // With a `/` or `?` in a password that is not encoded, nobody can say where the host begins.
    if path.contains('@') {
        return format!("{scheme}://…");
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}{path}"),
        None => format!("{scheme}://{authority}{path}"),
    }
}

async fn database(env: &Env, data: &Path) -> Result<String, String> {
    let url = env.get_or_default(env::DATABASE_URL);
    if !url.starts_with("postgres") {
        let probe = data.join(".doctor");
        std::fs::create_dir_all(data)
            .and_then(|()| std::fs::write(&probe, b""))
            .map_err(|error| format!("{}: {error}", data.display()))?;
        let _ = std::fs::remove_file(probe);
        return Ok(format!("files in {}", data.display()));
    }
    let place = Place::Postgres { url, schema: "pg_temp".to_owned() };
    // A schema of one's own session, of which nothing is left.
    Db::reachable(&place).await.map(|()| "PostgreSQL answers".to_owned()).map_err(|error| error.to_string())
}

async fn broker(env: &Env, data: &Path) -> Result<String, String> {
    let broker = messages::open(env, data).await.map_err(|error| error.to_string())?;
    broker.check().await.map(|()| format!("{} answers", broker.address())).map_err(|error| error.to_string())
}

/// That the service of this name answers there, and not another.
async fn service(url: &str, name: &str, env: &Env) -> Result<String, String> {
    if url.starts_with("https:") {
        return reachable(url, 443).await;
    }
    connect(url, 80).await?;
    let remote = Remote::of([(name.to_owned(), url.trim_end_matches('/').to_owned())].into(), env);
    let answer = match tokio::time::timeout(PATIENCE, remote.get(name, "/health")).await {
        Ok(answer) => answer.map_err(|error| format!("it does not speak HTTP: {error}"))?,
        Err(_) => return Err("it accepts connections and says nothing".to_owned()),
    };
    match answer.json()["service"].as_str() {
        Some(said) if said == name || said == "monolith" => Ok(format!("{said} answers")),
        Some(other) => Err(format!("what answers there is {other}")),
        None => Err(format!("what answers there is no service of this system: {}", answer.status)),
    }
}

/// A `PING`, spoken by hand: two lines need no library.
async fn redis(url: &str) -> Result<String, String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = connect(url, 6_379).await?;
    let asked = async {
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        // One that wants a password first is there, too.
        Ok(Ok(answer)) if answer == "+PONG" || answer.starts_with("-NOAUTH") => {
            Ok("Redis answers".to_owned())
        }
        Ok(Ok(answer)) => Err(format!("what answers is no Redis: {answer}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in 2 s".to_owned()),
    }
}

async fn reachable(url: &str, port: u16) -> Result<String, String> {
    connect(url, port).await.map(|_| "it accepts connections".to_owned())
}

async fn connect(url: &str, port: u16) -> Result<tokio::net::TcpStream, String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split('/').next().unwrap_or(rest);
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") };
    match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer in 2 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let secret = |name: &str| env::declared(name).filter(|it| it.secret).expect("a secret");
        for (name, value, seen) in [
            (env::JWT_SECRET, "k3y:part", "…"),
            (env::JWT_SECRET, "sqlite:k3y", "…"),
            (env::JWT_SECRET, "k3y://user@part", "…"),
            (env::INTERNAL_TOKEN, "k3y", "…"),
            (env::DATABASE_URL, "sqlite:", "sqlite:"),
            (env::DATABASE_URL, "postgres://h/db?password=k3y", "postgres://h/db"),
            (env::DATABASE_URL, "postgres://h?password=k3y", "postgres://h"),
            (env::DATABASE_URL, "postgres://h/db?user=u@h&password=k3y", "postgres://…"),
            (env::DATABASE_URL, "postgres://u:k3y@h:5432/db", "postgres://…@h:5432/db"),
            (env::DATABASE_URL, "postgres://u:k3y/k3y@h/db", "postgres://…"),
            (env::DATABASE_URL, "host=h password=k3y", "…"),
            (env::RABBITMQ_URL, "amqp://u:k3y@h/%2f?prefix=x", "amqp://…@h/%2f"),
            (env::RABBITMQ_URL, "memory:", "memory:"),
            (env::REDIS_URL, "redis://:k3y@h", "redis://…@h"),
        ] {
            assert_eq!(shown(secret(name), value), seen, "{value}");
        }
        let host = env::declared(env::HOST).expect("it is declared");
        assert_eq!(shown(host, "0.0.0.0:x"), "0.0.0.0:x");
    }
}
