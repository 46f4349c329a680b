//! Sagas for people: what has happened as a table, what a definition looks like as a graph.
//!
//! # Example
//!
//! ```
//! use mainstay::saga::{Orchestrator, Saga, memory::Memory, view::Timeline};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut hello = Saga::define::<String>("hello", 1);
//! let greeted = hello.step("greet", (), async |_, ()| Ok(7)).without_compensation("a greeting stays");
//! let hello = hello.build(greeted)?;
//! println!("{}", hello.to_dot()); // for `dot -Tsvg`; `to_mermaid` for Markdown
//!
//! let orchestrator = Orchestrator::open(Memory::new()).register(&hello).start().await?;
//! orchestrator.run(&hello, "hello-1", &"world".to_owned()).await?;
//! if let Some(stored) = orchestrator.load("hello-1").await? {
//!     println!("{}", Timeline::of(&stored)); // one line for each record
//!     println!("{}", hello.diagram().with(&stored).to_dot()); // each step in the colour of its state
//! }
//! # Ok(()) }
//! ```
//!
//! Neither is a format to be read by programs: what they print may change in any version. For programs there are the
//! fields of a [`Row`], which serialise.

mod diagram;
mod timeline;

pub use diagram::{Diagram, State};
pub use timeline::{Row, Timeline};
