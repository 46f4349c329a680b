-- One message, once, however many queues want it. Its number is never used again: an answer that comes late must not settle another.
CREATE TABLE messages (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL,
    topic   TEXT NOT NULL,
    key     TEXT NOT NULL,
    headers TEXT NOT NULL,
    body    TEXT NOT NULL
) STRICT;

-- A message in a queue. Short rows: claiming a hundred of them rewrites two pages, not fifteen.
-- state: 0 ready, 1 held, 2 behind an earlier message of its key, 3 delayed until `due` (0 in all other states).
CREATE TABLE deliveries (
    seq      INTEGER NOT NULL,
    queue    INTEGER NOT NULL,
    key      TEXT NOT NULL,
    state    INTEGER NOT NULL,
    due      INTEGER NOT NULL DEFAULT 0,
    holder   INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    returns  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (seq, queue)
) STRICT, WITHOUT ROWID;
CREATE INDEX by_state ON deliveries (queue, state, due, seq);
CREATE INDEX by_key ON deliveries (queue, key, seq) WHERE key <> '';

CREATE TABLE dead (
    n        INTEGER PRIMARY KEY AUTOINCREMENT,
    queue    INTEGER NOT NULL,
    id       TEXT NOT NULL,
    topic    TEXT NOT NULL,
    key      TEXT NOT NULL,
    headers  TEXT NOT NULL,
    body     TEXT NOT NULL,
    reason   TEXT NOT NULL,
    count    INTEGER NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX dead_by_queue ON dead (queue, n);

-- The consumers that one opened broker has on one queue. What it holds returns when it is silent beyond `expires`.
CREATE TABLE holders (
    id        INTEGER PRIMARY KEY,
    queue     INTEGER NOT NULL,
    consumers INTEGER NOT NULL,
    expires   INTEGER NOT NULL
) STRICT;

CREATE TABLE queues (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL
) STRICT;

-- `version` grows with each declaration: whoever remembers the topology sees by it that it has changed.
CREATE TABLE exchange (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    name    TEXT NOT NULL,
    version INTEGER NOT NULL
) STRICT;
INSERT INTO exchange VALUES (1, '', 0);

PRAGMA user_version = 1;
