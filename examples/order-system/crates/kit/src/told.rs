//! What a service tells: the schema of its events, made of the types that they are written with, for `GET /events.json`.
//!
//! It is JSON Schema 2020-12, which the descriptions of utoipa are as well, apart from where they refer to each other. An event is an
//! [`Envelope`] of a kind that is listed, with the data of that kind. More fields than are described may come
//! with time, and break nobody; a kind that is not listed is not this service's.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use crate::events::Envelope;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The events of one service.
pub struct Told {
    source: &'static str,
    says: Vec<Value>,
    types: BTreeMap<String, RefOr<Schema>>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Told({}, {} types)", self.source, self.types.len())
    }
}

impl Told {
    /// By the service of that name, nothing yet.
    pub fn by(source: &'static str) -> Self {
        let mut told = Told { source, says: Vec::new(), types: BTreeMap::new() };
        told.describe::<Envelope>();
        told
    }

    /// Events of these kinds, whose data is a `T`.
    #[must_use]
    pub fn says<T: ToSchema>(mut self, kinds: &[&str]) -> Self {
        let data = self.describe::<T>();
        self.says.push(json!({ "properties": { "type": { "enum": kinds }, "data": { "$ref": data } } }));
        self
    }

    /// Takes the type in with those that it consists of; where it is.
    fn describe<T: ToSchema>(&mut self) -> String {
        let mut parts = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut parts);
        self.types.extend(parts);
        format!("#/$defs/{}", T::name())
    }

    fn schema(&self) -> Value {
        let Told { source, says, types } = self;
        json!({
            "$schema": DIALECT,
            "$id": format!("urn:events:{source}"),
            "title": format!("The events of {source}"),
            "$ref": "#/$defs/Envelope",
            "properties": { "metadata": { "properties": { "source": { "const": source } } } },
            "oneOf": says,
            "$defs": types,
        })
    }
}

/// The schema as text; of several services, as in a monolith, that of any of them. Nothing, if nothing is told.
pub(crate) fn schema(told: &[Told]) -> Option<String> {
    let schema = match told {
        [] => return None,
        [one] => one.schema(),
        several => {
            json!({ "$schema": DIALECT, "anyOf": several.iter().map(Told::schema).collect::<Vec<_>>() })
        }
    };
    Some(schema.to_string().replace("#/components/schemas/", "#/$defs/"))
}
