//! What an append costs, beside what the server's own insert costs in the same run:
//! `cargo test --release --features postgres --test saga_journal_postgres -- --ignored --nocapture measure`.

use std::time::{Duration, Instant};

use mainstay::saga::{
    conformance::{Pen, definition},
    journal::{Append, Journal},
};

use crate::place::{Place, at, by, with_place};

#[test]
#[ignore = "it measures; it proves nothing"]
fn measure() {
    with_place("measure", |place| async move {
        one_at_a_time(&place).await;
        for size in [64, 256, 1_024] {
            batches(&place, size).await;
        }
    });
}

fn percentile(times: &mut [Duration], of_hundred: usize) -> f64 {
    times.sort();
    times[(times.len() - 1) * of_hundred / 100].as_secs_f64() * 1e6
}

async fn commits(place: &Place) -> i64 {
    let counted = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    place.client().await.query_one(counted, &[]).await.unwrap().get(0)
}

async fn one_at_a_time(place: &Place) {
    let journal = place.journal().await;
    let client = place.client().await;
    let raw = format!("\"{}\".single", place.schema);
    client
        .batch_execute(&format!(
            "CREATE TABLE {raw} (saga text, seq bigint, data text, PRIMARY KEY (saga, seq))"
        ))
        .await
        .unwrap();
    let insert = client.prepare(&format!("INSERT INTO {raw} VALUES ($1, $2, $3)")).await.unwrap();
    let mut pen = Pen::new("single", &by("me"), at());
    journal.append(vec![pen.begin(&definition())]).await.unwrap();
    let (mut appends, mut inserts) = (Vec::new(), Vec::new());
    for n in 0..2_000_i64 {
        let item = pen.step("reserve-stock");
        let data = item.entries[0].data.clone();
        let since = Instant::now();
        journal.append(vec![item]).await.unwrap()[0].as_ref().unwrap();
        appends.push(since.elapsed());
        let since = Instant::now();
        client.execute(&insert, &[&"single", &n, &data]).await.unwrap();
        inserts.push(since.elapsed());
    }
    println!(
        "one at a time: append p50 {:.0} µs, p90 {:.0} µs; insert of one row p50 {:.0} µs, p90 {:.0} µs",
        percentile(&mut appends, 50),
        percentile(&mut appends, 90),
        percentile(&mut inserts, 50),
        percentile(&mut inserts, 90),
    );
}

async fn batches(place: &Place, size: usize) {
    let journal = place.journal().await;
    let client = place.client().await;
    let raw = format!("\"{}\".raw_{size}", place.schema);
    let like = format!("CREATE TABLE {raw} (LIKE \"{}\".saga_event INCLUDING ALL)", place.schema);
    client.batch_execute(&like).await.unwrap();
    let insert = format!(
        "INSERT INTO {raw} SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[],
        $7::text[], $8::text[], $9::bigint[])"
    );
    let insert = client.prepare(&insert).await.unwrap();
    let mut pens: Vec<_> = (0..size).map(|n| Pen::new(&format!("{size}-{n:05}"), &by("me"), at())).collect();
    let begun = pens.iter_mut().map(|pen| pen.begin(&definition())).collect();
    let since = Instant::now();
    assert!(journal.append(begun).await.unwrap().iter().all(Result::is_ok));
    let begin = since.elapsed();

    let rounds = 40_000 / size;
    let (mut appending, mut inserting) = (Duration::ZERO, Duration::ZERO);
    let before = commits(place).await;
    for _ in 0..rounds {
        let batch: Vec<Append> = pens.iter_mut().map(|pen| pen.step("reserve-stock")).collect();
        let copy = batch.clone();
        let since = Instant::now();
        let answers = journal.append(batch).await.unwrap();
        appending += since.elapsed();
        assert!(answers.iter().all(Result::is_ok));

        let entries: Vec<_> = copy
            .iter()
            .flat_map(|item| item.entries.iter().map(|entry| (item.saga.as_str(), entry)))
            .collect();
        let since = Instant::now();
        let saga: Vec<i64> =
            entries.iter().map(|(saga, _)| saga[saga.len() - 5..].parse().unwrap()).collect();
        let seq: Vec<i64> = entries.iter().map(|(_, entry)| entry.seq as i64).collect();
        let epoch: Vec<i64> = entries.iter().map(|(_, entry)| entry.epoch as i64).collect();
        let when: Vec<i64> = entries.iter().map(|(_, entry)| entry.at.0 as i64).collect();
        let who: Vec<&str> = entries.iter().map(|(_, entry)| entry.by.as_str()).collect();
        let kind: Vec<&str> = entries.iter().map(|(_, entry)| &*entry.kind).collect();
        let step: Vec<Option<&str>> = entries.iter().map(|(_, entry)| entry.step.as_deref()).collect();
        let data: Vec<&str> = entries.iter().map(|(_, entry)| &*entry.data).collect();
        let crc: Vec<i64> = entries.iter().map(|(_, entry)| entry.crc.into()).collect();
        client
            .execute(&insert, &[&saga, &seq, &epoch, &when, &who, &kind, &step, &data, &crc])
            .await
            .unwrap();
        inserting += since.elapsed();
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let entries = (rounds * size) as f64;
    // The other half of the commits is the raw inserts'.
    let per_entry = (commits(place).await - before) as f64 / 2.0 / entries;
    let (rate, raw) = (entries / appending.as_secs_f64(), entries / inserting.as_secs_f64());
    println!(
        "batches of {size}: append {rate:.0} entries/s, raw insert {raw:.0} rows/s, {:.0} %; {per_entry:.4} commits for an \
         entry; begin of {size} {:.1} ms",
        100.0 * rate / raw,
        begin.as_secs_f64() * 1e3
    );
}
