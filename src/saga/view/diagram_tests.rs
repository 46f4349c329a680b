use super::{
    super::timeline::tests::{completed, json, stored},
    *,
};
use crate::saga::{Timestamp, shape::tests::shape};

fn rejected(step: &str) -> Record {
    let cause = Cause::Rejected { step: step.to_owned(), error: "no".to_owned() };
    Record::Aborted { cause, clean: vec![step.to_owned()] }
}

fn undone(step: &str) -> Record {
    Record::Undone { step: step.to_owned(), attempts: 1, ms: 1 }
}

fn states(diagram: &Diagram) -> Vec<(&str, &str)> {
    diagram.states().map(|(path, state)| (path, state.as_str())).collect()
}

#[test]
fn a_definition_is_drawn_with_the_class_of_each_step() {
    let diagram = Diagram::of_shape(&shape("a:c b:n>a p:p>a,b r:r>p o:o>r").unwrap());
    let dot = r##"digraph "test v1" {
  rankdir=LR;
  node [shape=box, style="rounded,filled", fillcolor="#ffffff"];
  s0 [label="a"];
  s1 [label="b\nno undo"];
  s2 [label="p\npivot", shape=octagon, style=filled];
  s3 [label="r\nretriable"];
  s4 [label="o\nread-only", style="rounded,filled,dashed"];
  s0 -> s1;
  s0 -> s2;
  s1 -> s2;
  s2 -> s3;
  s3 -> s4;
}
"##;
    assert_eq!(diagram.to_dot(), dot);
    let mermaid = r##"---
title: "test v1"
---
flowchart LR
  s0("a")
  s1("b<br/>no undo")
  s2{{"p<br/>pivot"}}
  s3("r<br/>retriable")
  s4(["o<br/>read-only"])
  s0 --> s1
  s0 --> s2
  s1 --> s2
  s2 --> s3
  s3 --> s4
"##;
    assert_eq!(diagram.to_mermaid(), mermaid);
}

#[test]
fn why_a_step_has_no_undo_is_drawn_and_is_no_part_of_the_digest() {
    let greeting = |why: &str| {
        let mut saga = Saga::define::<u32>("hello", 1);
        let greeted = saga.step("greet", (), async |_, ()| Ok(7)).without_compensation(why);
        saga.build(greeted).unwrap()
    };
    let (one, two) = (greeting("a \"greeting\" stays"), greeting("nobody minds"));
    assert!(one.to_dot().contains(r#"label="greet\nno undo: a \"greeting\" stays""#), "{}", one.to_dot());
    let mermaid = one.to_mermaid();
    assert!(mermaid.contains("greet<br/>no undo: a #34;greeting#34; stays"), "{mermaid}");
    assert!(two.to_dot().contains("no undo: nobody minds"));
    assert_eq!(one.digest(), two.digest());
}

#[test]
fn a_saga_colours_the_steps_of_its_definition() {
    let stored = stored(&[(0, "x", completed("a", 1)), (1, "x", rejected("b")), (2, "x", undone("a"))]);
    let diagram = Diagram::of_shape(&shape("a:c b:c>a c:c>b").unwrap()).with(&stored);
    let dot = r##"digraph "test v1: order-17 running" {
  rankdir=LR;
  node [shape=box, style="rounded,filled", fillcolor="#ffffff"];
  s0 [label="a\nundone", fillcolor="#a5d8ff", tooltip=undone];
  s1 [label="b\nrejected", fillcolor="#dee2e6", tooltip=rejected];
  s2 [label="c", fillcolor="#ffffff", tooltip=open];
  s0 -> s1;
  s1 -> s2;
}
"##;
    assert_eq!(diagram.to_dot(), dot);
}

#[test]
fn a_saga_without_its_definition_is_drawn_in_the_order_of_its_records() {
    let stored = stored(&[(0, "x", completed("a", 1)), (1, "x", rejected("b")), (2, "x", undone("a"))]);
    let mermaid = r##"---
title: "order v2: order-17 running"
---
flowchart LR
  s0("a<br/>undone")
  s1("b<br/>rejected")
  s0 -.-> s1
  style s0 fill:#a5d8ff,color:#000000
  style s1 fill:#dee2e6,color:#000000
"##;
    assert_eq!(Diagram::of(&stored).to_mermaid(), mermaid);
    let dotted = "  s0 -> s1 [style=dotted];\n";
    assert!(Diagram::of(&stored).to_dot().contains(dotted));
}

#[test]
fn names_cannot_break_out_of_their_quotation_marks() {
    let nasty = "\"];\\x #<b>`";
    let stored = stored(&[(0, "x", completed(nasty, 1))]);
    let diagram = Diagram::of(&stored);
    let dot = diagram.to_dot();
    assert!(dot.contains(r##"s0 [label="\"];\\x #<b>`\ncompleted","##), "{dot}");
    let mermaid = diagram.to_mermaid();
    assert!(mermaid.contains("s0(\"#34;]#59;#92;x #35;#60;b#62;#96;<br/>completed\")"), "{mermaid}");
    let ends_so =
        Diagram::of(&super::super::timeline::tests::stored(&[(0, "x", completed("say \"hi\"", 1))]));
    assert!(ends_so.to_dot().contains(r#"[label="say \"hi\"\ncompleted""#), "{}", ends_so.to_dot());
}

#[test]
fn trouble_is_shown_until_it_is_settled() {
    let step = || "a".to_owned();
    let stuck = Record::Stuck { step: step(), error: "no".to_owned() };
    let retry =
        |step| Record::Ordered { by: "ada".to_owned(), order: Order::Retry { step }, clean: Vec::new() };
    let of = |records: &[Record]| {
        let records: Vec<_> = records.iter().map(|record| (0, "x", record.clone())).collect();
        Diagram::of(&stored(&records))
    };
    let armed = Record::Armed { step: step(), until: Timestamp(9) };
    assert_eq!(states(&of(&[armed])), [("a", "waiting")]);
    assert_eq!(states(&of(std::slice::from_ref(&stuck))), [("a", "stuck")]);
    assert_eq!(states(&of(&[stuck.clone(), retry(None)])), [("a", "open")]);
    assert_eq!(states(&of(&[stuck.clone(), retry(Some(step()))])), [("a", "open")]);
    assert_eq!(
        states(&of(&[completed("a", 1), rejected("b"), stuck.clone()])),
        [("a", "stuck"), ("b", "rejected")]
    );
    let by_hand = Order::Complete { step: step(), output: json(1) };
    let by_hand = Record::Ordered { by: "ada".to_owned(), order: by_hand, clean: Vec::new() };
    assert_eq!(states(&of(&[stuck, by_hand])), [("a", "completed")]);
}
