//! A body that is an object.

use serde::{Deserialize, Deserializer, de::Visitor};

/// A value whose struct was an object. From a list serde would fill a struct as well, by the order of its fields, to which nobody has
/// agreed.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(NoList(deserializer)).map(Object)
    }
}

/// Asks for a map where a struct is wanted, and for everything else as it is wanted.
struct NoList<D>(D);

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty),*))*) => {$(
        fn $name<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$name($($argument,)* visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for NoList<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    pass_on! {
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64() deserialize_char() deserialize_str() deserialize_string() deserialize_bytes()
        deserialize_byte_buf() deserialize_option() deserialize_unit() deserialize_seq() deserialize_map()
        deserialize_identifier() deserialize_ignored_any() deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str) deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Point {
        x: i64,
        y: Option<i64>,
    }

    #[test]
    fn a_list_is_no_struct() {
        let read = |json: &str| serde_json::from_str::<Object<Point>>(json).map(|it| it.0).ok();
        assert_eq!(read(r#"{"y":2,"x":1}"#), Some(Point { x: 1, y: Some(2) }));
        assert_eq!(read("[1,2]"), None);
        assert_eq!(
            serde_json::from_str::<Point>("[1,2]").unwrap(),
            Point { x: 1, y: Some(2) },
            "serde alone"
        );
        let list = serde_json::from_str::<Object<Vec<i64>>>("[1,2]").unwrap();
        assert_eq!(list.0, [1, 2], "where a list is wanted it is taken");
    }
}
