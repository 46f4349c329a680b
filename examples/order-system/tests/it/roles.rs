//! What the roles of the deployment may do in PostgreSQL, and what they may not.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt;
use order_kit::env;
use order_system::{
    remote::Remote,
    services,
    system::{Options, System},
};
use serde_json::json;
use tokio_postgres::{Client, NoTls, error::SqlState};

const INIT: &str = include_str!("../../deploy/postgres/init.sql");

/// The services that keep data.
fn keepers() -> impl Iterator<Item = &'static str> {
    services::ALL.iter().copied().filter(|part| *part != order_gateway::NAME)
}

/// The statements of the deployment, with a prefix before the names of its roles and databases.
fn statements(prefix: &str) -> Vec<String> {
    let names: Vec<String> = keepers().flat_map(|part| [part.to_owned(), format!("{part}_db")]).collect();
    let lines: String =
        INIT.lines().filter(|line| !line.starts_with("--")).map(|line| format!("{line} ")).collect();
    let mut renamed = String::new();
    let is_word = |it: char| it.is_ascii_alphanumeric() || it == '_';
    for word in lines.split_inclusive(|it| !is_word(it)) {
        if names.iter().any(|name| word.trim_end_matches(|it| !is_word(it)) == name) {
            renamed.push_str(prefix);
        }
        renamed.push_str(word);
    }
    let statements = renamed.split(';').map(str::trim).filter(|it| !it.is_empty());
    statements.map(str::to_owned).collect()
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_comes_to_the_data_of_another_service() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        eprintln!("SKIPPED no_role_comes_to_the_data_of_another_service: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let prefix = format!("it{}_", &order_kit::new_id().replace('-', "")[20..]);
    let admin = connect(&url).await.expect("the server");
    let ran = AssertUnwindSafe(run(&admin, &url, &prefix)).catch_unwind().await;
    for statement in ["drop database if exists NAME_db with (force)", "drop role if exists NAME"] {
        for part in keepers() {
            let statement = statement.replace("NAME", &format!("{prefix}{part}"));
            admin.batch_execute(&statement).await.expect("nothing is left");
        }
    }
    if let Err(panic) = ran {
        resume_unwind(panic);
    }
}

async fn run(admin: &Client, url: &str, prefix: &str) {
    for statement in statements(prefix) {
        admin.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let host = url.rsplit_once('@').map_or(url, |(_, host)| host).split('/').next().expect("a host");
    let of = |role: &str, database: &str| {
        format!("postgres://{prefix}{role}:{prefix}{role}@{host}/{prefix}{database}_db")
    };
    for role in keepers() {
        for database in keepers() {
            let connected = connect(&of(role, database)).await;
            let code = connected.as_ref().err().map(|error| error.code());
            let expected = (role != database).then_some(Some(&SqlState::INSUFFICIENT_PRIVILEGE));
            assert_eq!(code, expected, "{role} in the database of {database}");
        }
    }
    // To its own role a database is enough: the service makes its schema, and does its work.
    let data = tempfile::tempdir().expect("a folder");
    let options = Options { parts: vec!["users"], ..Options::alone(data.path()) };
    let system =
        System::start(options.with(env::DATABASE_URL, of("users", "users"))).await.expect("it starts");
    let alice = json!({ "name": "Alice", "email": "alice@example.com" });
    let made = Remote::to(&system).post("users", "/users", alice).await.expect("an answer");
    system.stop().await;
    assert_eq!(made.status, 201, "{made:?}");
    // Who comes into the database all the same, as where services share one, stands before its schema.
    let let_in = format!("grant connect on database {prefix}users_db to {prefix}orders");
    admin.batch_execute(&let_in).await.expect("it can be granted");
    let count = "select count(*) from users.users";
    let own =
        connect(&of("users", "users")).await.expect("its own").query_one(count, &[]).await.expect("its own");
    assert_eq!(own.get::<_, i64>(0), 1);
    let orders = connect(&of("orders", "users")).await.expect("it was let in");
    for statement in
        [count, "delete from users.users", "create table users.theirs (id text)", "drop schema users cascade"]
    {
        let refused = orders.batch_execute(statement).await.expect_err(statement);
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {refused}");
    }
}
