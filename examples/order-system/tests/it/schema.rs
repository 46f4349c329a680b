//! Whether a value is what a description says: the part of JSON Schema that the services' descriptions are written in.

use std::collections::BTreeSet;

use serde_json::Value;

/// What is said for readers alone.
const PROSE: [&str; 7] = ["description", "format", "example", "examples", "default", "title", "pattern"];

/// What is wrong with a value, if anything. A field that is not described is: whoever reads the description would not know of it.
pub fn complaint(api: &Value, schema: &Value, value: &Value) -> Option<String> {
    check(api, schema, value, "it").err()
}

fn check(api: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    fits(api, schema, value, at)?;
    let (names, open) = properties(api, schema);
    match value.as_object().filter(|_| !open && !names.is_empty()) {
        Some(map) => match map.keys().find(|name| !names.contains(*name)) {
            Some(name) => Err(format!("{at}.{name} is not described")),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

fn resolved<'a>(api: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(name) = schema.get("$ref").and_then(Value::as_str) else { return schema };
    let found = name.strip_prefix('#').and_then(|pointer| api.pointer(pointer));
    resolved(api, found.unwrap_or_else(|| panic!("{name} is not in the description")))
}

/// The names that an object may have, and whether it may have others.
fn properties(api: &Value, schema: &Value) -> (BTreeSet<String>, bool) {
    let schema = resolved(api, schema);
    let own =
        schema.get("properties").and_then(Value::as_object).into_iter().flat_map(|it| it.keys().cloned());
    let mut all =
        (own.collect::<BTreeSet<_>>(), schema.get("additionalProperties").is_some_and(|it| *it != false));
    for part in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        let (names, open) = properties(api, part);
        all.0.extend(names);
        all.1 |= open;
    }
    all
}

/// Without a look at fields that are not described: of several parts each describes some.
fn fits(api: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("{at} is {value}: {what}"));
    let schema = resolved(api, schema);
    let Some(rules) = schema.as_object() else { return Ok(()) };
    let number = |rule: &Value| rule.as_f64().unwrap_or_else(|| panic!("{rule} is no number"));
    let length = value.as_str().map_or(0, |text| text.chars().count()) as f64;
    let items = value.as_array().map_or(0, Vec::len) as f64;
    for (name, rule) in rules {
        let each = || rule.as_array().unwrap_or_else(|| panic!("{name}: {rule} is no list")).iter();
        let holds = match name.as_str() {
            "type" => match rule {
                Value::Array(types) => types.iter().any(|one| is(value, one)),
                one => is(value, one),
            },
            "enum" => each().any(|one| one == value),
            "required" => value
                .as_object()
                .is_none_or(|map| each().all(|it| map.contains_key(it.as_str().unwrap_or("")))),
            "oneOf" => each().filter(|one| check(api, one, value, at).is_ok()).count() == 1,
            "allOf" => {
                each().try_for_each(|one| fits(api, one, value, at))?;
                true
            }
            "properties" => {
                for (property, schema) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(property) {
                        check(api, schema, value, &format!("{at}.{property}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let described = rules.get("properties").and_then(Value::as_object);
                let rest = value.as_object().into_iter().flatten();
                for (property, value) in
                    rest.filter(|(name, _)| described.is_none_or(|it| !it.contains_key(*name)))
                {
                    check(api, rule, value, &format!("{at}.{property}"))?;
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(api, rule, value, &format!("{at}[{index}]"))?;
                }
                true
            }
            "propertyNames" => true,
            "minimum" => value.as_f64().is_none_or(|it| it >= number(rule)),
            "maximum" => value.as_f64().is_none_or(|it| it <= number(rule)),
            "minLength" => !value.is_string() || length >= number(rule),
            "maxLength" => !value.is_string() || length <= number(rule),
            "minItems" => !value.is_array() || items >= number(rule),
            "maxItems" => !value.is_array() || items <= number(rule),
            prose if PROSE.contains(&prose) => true,
            other => panic!("a rule that is not looked at here: {other}"),
        };
        if !holds {
            return wrong(format!("{name} {rule}"));
        }
    }
    Ok(())
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        _ => panic!("{name} is no type"),
    }
}

#[test]
fn what_is_not_as_described_is_complained_of() {
    use serde_json::json;
    let api = json!({ "components": { "schemas": {
        "Named": { "type": "object", "required": ["name"], "properties": { "name": { "type": "string", "minLength": 2 } } },
        "Kind": { "oneOf": [{ "type": "string", "enum": ["a", "b"] }, { "type": "null" }] },
        "Whole": {
            "allOf": [
                { "$ref": "#/components/schemas/Named" },
                { "type": "object", "required": ["n"], "properties": { "n": { "type": ["integer", "null"], "minimum": 0 } } },
            ],
        },
        "Counts": { "type": "object", "additionalProperties": { "type": "integer" } },
    } } });
    let complains = |name: &str, value: Value| {
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        complaint(&api, &schema, &value).is_some()
    };
    for (name, value) in [
        ("Named", json!({ "name": "Al" })),
        ("Kind", json!("a")),
        ("Kind", json!(null)),
        ("Whole", json!({ "name": "Al", "n": 1 })),
        ("Whole", json!({ "name": "Al", "n": null })),
        ("Counts", json!({ "any": 1 })),
    ] {
        assert!(!complains(name, value.clone()), "{name}: {value}");
    }
    for (name, value) in [
        ("Named", json!({})),
        ("Named", json!({ "name": 7 })),
        ("Named", json!({ "name": "A" })),
        ("Named", json!({ "name": "Al", "more": 1 })),
        ("Named", json!([])),
        ("Kind", json!("c")),
        ("Whole", json!({ "name": "Al" })),
        ("Whole", json!({ "name": "Al", "n": -1 })),
        ("Whole", json!({ "name": "Al", "n": 1, "more": 1 })),
        ("Counts", json!({ "any": "1" })),
    ] {
        assert!(complains(name, value.clone()), "{name}: {value}");
    }
}
