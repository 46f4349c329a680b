//! Where users are kept.

use order_kit::{
    ApiError, BoxError, Context, Db, Tx,
    db::{DbError, Row},
    events, iso, new_id, now_ms,
};
use tracing::Instrument;

use crate::{
    NAME,
    wire::{CREATED, NewUser, Revised, UPDATED, User, UserChange},
};

/// `email_key` is the address in lower case: two users whose addresses differ in case alone are one mailbox to most servers.
/// `revision` counts all changes of all users, for a service that takes them over. `legacy_revision` is the monolith's, for a user who is as the
/// monolith says; one who was made or changed here has none. `backfill` is where the filling from there goes on, while it is not done.
const MIGRATIONS: &[&str] = &[
    "
create table users (
    id text primary key,
    email text not null,
    email_key text not null unique,
    name text not null,
    created_at bigint not null,
    revision bigint not null unique
);
",
    "
alter table users add column legacy_revision bigint;
create table backfill (one bigint primary key, behind bigint not null);
",
];

const COLUMNS: &str = "id, email, name, created_at, revision";
const LONGEST_NAME: usize = 100;
const LONGEST_EMAIL: usize = 254;

/// The users; clones are the same.
#[derive(Clone)]
pub(crate) struct Users {
    db: Db,
}

impl Users {
    /// The repository of a service, the same for everything that the service serves.
    pub(crate) async fn of(context: &Context) -> Result<Self, BoxError> {
        let open = async {
            let db = context.open_db(MIGRATIONS).await?;
            events::start_relay(context, &db);
            Ok::<_, DbError>(Users { db })
        };
        Ok(context.shared(open).await?)
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn create(&self, new: NewUser) -> Result<User, ApiError> {
        check_email(&new.email)?;
        check_name(&new.name)?;
        let work = async move |tx: &Tx<'_>| {
            let (now, revision) = (now_ms(), next_revision(tx).await?);
            let user = User { id: new_id(), email: new.email, name: new.name, created_at: iso(now) };
            tx.execute(
                "insert into users (id, email, email_key, name, created_at, revision) values ($1, $2, $3, $4, $5, $6)",
                &[
                    (&user.id).into(),
                    (&user.email).into(),
                    user.email.to_lowercase().into(),
                    (&user.name).into(),
                    now.into(),
                    revision.into(),
                ],
            )
            .await
            .map_err(taken)?;
            let made = Revised { user, revision };
            events::emit(tx, NAME, CREATED, &made.user.id, &made).await?;
            Ok::<_, ApiError>(made.user)
        };
        self.db.write(work).await
    }

    /// In a span of its own, by whichever protocol somebody asks.
    pub(crate) async fn find(&self, id: String) -> Result<Option<User>, DbError> {
        let span = tracing::info_span!("getUser", userId = id);
        self.db.read(async move |tx| Ok(find(tx, &id).await?.map(|it| it.user))).instrument(span).await
    }

    /// The newest first.
    pub(crate) async fn list(&self, limit: i64) -> Result<Vec<User>, DbError> {
        let sql = format!("select {COLUMNS} from users order by created_at desc, id desc limit $1");
        let work = async move |tx: &Tx<'_>| {
            let rows = tx.query(&sql, &[limit.into()]).await?;
            rows.iter().map(|row| revised(row).map(|it| it.user)).collect()
        };
        self.db.read(work).await
    }

    /// The one with that address, in whatever case.
    pub(crate) async fn with_email(&self, email: &str) -> Result<Option<User>, DbError> {
        let sql = format!("select {COLUMNS} from users where email_key = $1");
        let key = email.to_lowercase();
        let work = async move |tx: &Tx<'_>| {
            let row = tx.first(&sql, &[key.into()]).await?;
            row.map(|row| revised(&row).map(|it| it.user)).transpose()
        };
        self.db.read(work).await
    }

    /// `None` if there is no such user. A change that changes nothing is none: no event says so.
    pub(crate) async fn update(&self, id: String, change: UserChange) -> Result<Option<User>, ApiError> {
        change.email.as_deref().map_or(Ok(()), check_email)?;
        change.name.as_deref().map_or(Ok(()), check_name)?;
        let work = async move |tx: &Tx<'_>| {
            // Taken before the user is read, so that of two changes at once the second sees the first.
            let revision = next_revision(tx).await?;
            let Some(Revised { user: old, .. }) = find(tx, &id).await? else { return Ok(None) };
            let user = User {
                email: change.email.unwrap_or_else(|| old.email.clone()),
                name: change.name.unwrap_or_else(|| old.name.clone()),
                ..old.clone()
            };
            if user == old {
                return Ok(Some(user));
            }
            tx.execute(
                "update users set email = $1, email_key = $2, name = $3, revision = $4, legacy_revision = null where id = $5",
                &[
                    (&user.email).into(),
                    user.email.to_lowercase().into(),
                    (&user.name).into(),
                    revision.into(),
                    (&user.id).into(),
                ],
            )
            .await
            .map_err(taken)?;
            let changed = Revised { user, revision };
            events::emit(tx, NAME, UPDATED, &changed.user.id, &changed).await?;
            Ok::<_, ApiError>(Some(changed.user))
        };
        self.db.write(work).await
    }

    /// The users whose last change came after that revision, in order of their changes; of many the first `limit`.
    pub(crate) async fn after(&self, revision: i64, limit: i64) -> Result<Vec<Revised>, DbError> {
        let sql = format!("select {COLUMNS} from users where revision > $1 order by revision limit $2");
        let work = async move |tx: &Tx<'_>| {
            let rows = tx.query(&sql, &[revision.into(), limit.into()]).await?;
            rows.iter().map(revised).collect()
        };
        self.db.read(work).await
    }
}

async fn find(tx: &Tx<'_>, id: &str) -> Result<Option<Revised>, DbError> {
    let sql = format!("select {COLUMNS} from users where id = $1");
    tx.first(&sql, &[id.into()]).await?.map(|row| revised(&row)).transpose()
}

fn revised(row: &Row) -> Result<Revised, DbError> {
    let user =
        User { id: row.text(0)?, email: row.text(1)?, name: row.text(2)?, created_at: iso(row.int(3)?) };
    Ok(Revised { revision: row.int(4)?, user })
}

/// Changes are made one after another, so that whoever has seen a revision has seen all before it: with two transactions open at once,
/// the later number could be there before the earlier one.
pub(crate) async fn next_revision(tx: &Tx<'_>) -> Result<i64, DbError> {
    tx.lock("users.revision").await?;
    Ok(last_revision(tx).await? + 1)
}

async fn last_revision(tx: &Tx<'_>) -> Result<i64, DbError> {
    let row = tx.first("select coalesce(max(revision), 0) from users", &[]).await?;
    row.map_or(Ok(0), |row| row.int(0))
}

fn taken(error: DbError) -> ApiError {
    match error {
        DbError::NotUnique(_) => ApiError::conflict("Email already exists"),
        other => other.into(),
    }
}

fn check_email(email: &str) -> Result<(), ApiError> {
    let sound = email.contains('@') && email.len() <= LONGEST_EMAIL && !email.chars().any(char::is_control);
    if sound { Ok(()) } else { Err(ApiError::bad_request("Invalid email")) }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let characters = name.trim().chars().count();
    let sound =
        characters >= 2 && name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control);
    if sound { Ok(()) } else { Err(ApiError::bad_request("Invalid name")) }
}
