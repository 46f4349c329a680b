//! Requests from outside.

use std::sync::Arc;

use super::{
    link::{Session, Trouble},
    rounds::clean,
    schema::Sql,
};
use crate::saga::{
    Incarnation, SagaId,
    journal::{Ask, Phase, Request, Requested, StoreError},
};

/// Leaves a request, unless the saga is over or one of its name is there. The saga's row is locked, so that it does not come to
/// its end meanwhile.
pub(super) const REQUEST: &str = "
WITH target AS MATERIALIZED (
    SELECT number, phase, finished FROM @.saga WHERE id = $1 FOR SHARE
), known AS MATERIALIZED (
    SELECT coalesce(author = $3 AND ask = $4, false) AS alike FROM @.signal
    WHERE saga = (SELECT number FROM target) AND id = $2
), fresh AS (
    INSERT INTO @.signal (saga, id, author, ask) SELECT number, $2, $3, $4 FROM target
    WHERE finished IS NULL AND NOT EXISTS (SELECT FROM known) ON CONFLICT (saga, id) DO NOTHING RETURNING id
)
SELECT phase, EXISTS (SELECT FROM fresh), (SELECT alike FROM known), finished IS NOT NULL FROM target";

/// The requests that wait for an owner.
pub(super) const REQUESTS: &str = "
SELECT saga.id, signal.id, signal.author, signal.ask FROM @.signal JOIN @.saga ON saga.number = signal.saga
WHERE signal.ask IS NOT NULL AND saga.owner = $1 AND saga.finished IS NULL ORDER BY signal.number";

/// Leaves a request. `again` when an earlier attempt may have left it already.
pub(super) async fn request(
    session: Arc<Session>,
    request: &Request,
    again: bool,
) -> Result<Requested, Trouble> {
    let Request { id, saga, by, ask } = request;
    let (saga, id, by, ask) = (saga.as_str(), clean(id), clean(by), encode(ask)?);
    let row = session.client.query_opt(session.statement(Sql::Request), &[&saga, &id, &by, &ask]).await?;
    let Some(row) = row else { return Ok(Requested::Missing) };
    let (left, alike): (bool, Option<bool>) = (row.try_get(1)?, row.try_get(2)?);
    Ok(match (left, alike, row.try_get(3)?) {
        (true, ..) => Requested::Left,
        // Left by the attempt that had no answer.
        (false, Some(true), _) if again => Requested::Left,
        (false, Some(_), _) | (false, None, false) => Requested::Known,
        (false, None, true) => {
            let word: &str = row.try_get(0)?;
            let phase = Phase::from_text(word).ok_or_else(|| senseless(format!("phase {word:?}")))?;
            Requested::Over(phase)
        }
    })
}

/// The requests that wait for `by`. One that a later version has left, and this one cannot read, waits for a later version.
pub(super) async fn requests(session: Arc<Session>, by: &Incarnation) -> Result<Vec<Request>, Trouble> {
    let rows = session.client.query(session.statement(Sql::Requests), &[&by.as_str()]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let Ok(ask) = serde_json::from_str::<Ask>(row.try_get(3)?) else { continue };
        let Ok(saga) = SagaId::new(row.try_get(0)?) else { continue };
        found.push(Request { id: row.try_get(1)?, saga, by: row.try_get(2)?, ask });
    }
    Ok(found)
}

fn encode(ask: &Ask) -> Result<String, Trouble> {
    serde_json::to_string(ask).map_err(|error| senseless(error.to_string()))
}

fn senseless(why: String) -> Trouble {
    Trouble::Final(StoreError::Io(why))
}
