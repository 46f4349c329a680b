//! Values as both databases know them.

use bytes::BytesMut;
use rusqlite::types::{ToSqlOutput, Value as SqliteValue, ValueRef};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::DbError;

/// A parameter or a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A `bigint`.
    Int(i64),
    /// A `text`.
    Text(String),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<bool> for Value {
    /// 0 or 1.
    fn from(value: bool) -> Self {
        Value::Int(i64::from(value))
    }
}

impl From<crate::Cents> for Value {
    fn from(value: crate::Cents) -> Self {
        Value::Int(value.0)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Value::Text(value.clone())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Value::Null => ToSqlOutput::Owned(SqliteValue::Null),
            Value::Int(value) => ToSqlOutput::Owned(SqliteValue::Integer(*value)),
            Value::Text(value) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
        })
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self, kind) {
            (Value::Null, _) => Ok(IsNull::Yes),
            (Value::Int(value), &Type::INT4) => i32::try_from(*value)?.to_sql(kind, out),
            (Value::Int(value), &Type::BOOL) => (*value != 0).to_sql(kind, out),
            (Value::Int(value), _) => value.to_sql(kind, out),
            // A text of PostgreSQL has no zero byte.
            (Value::Text(value), _) if value.contains('\0') => value.replace('\0', " ").to_sql(kind, out),
            (Value::Text(value), _) => value.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::INT4 | Type::BOOL | Type::TEXT | Type::VARCHAR)
    }

    to_sql_checked!();
}

/// One row of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(pub(super) Vec<Value>);

impl Row {
    /// The text in a column.
    ///
    /// # Errors
    ///
    /// [`DbError::Statement`] if there is none.
    pub fn text(&self, column: usize) -> Result<String, DbError> {
        match self.0.get(column) {
            Some(Value::Text(value)) => Ok(value.clone()),
            other => Err(DbError::Statement(format!("column {column} is no text: {other:?}"))),
        }
    }

    /// The number in a column.
    ///
    /// # Errors
    ///
    /// [`DbError::Statement`] if there is none.
    pub fn int(&self, column: usize) -> Result<i64, DbError> {
        match self.0.get(column) {
            Some(Value::Int(value)) => Ok(*value),
            other => Err(DbError::Statement(format!("column {column} is no number: {other:?}"))),
        }
    }

    /// The text in a column that may hold nothing.
    ///
    /// # Errors
    ///
    /// [`DbError::Statement`] if there is something else.
    pub fn maybe_text(&self, column: usize) -> Result<Option<String>, DbError> {
        if self.0.get(column) == Some(&Value::Null) { Ok(None) } else { self.text(column).map(Some) }
    }

    /// The number in a column that may hold nothing.
    ///
    /// # Errors
    ///
    /// [`DbError::Statement`] if there is something else.
    pub fn maybe_int(&self, column: usize) -> Result<Option<i64>, DbError> {
        if self.0.get(column) == Some(&Value::Null) { Ok(None) } else { self.int(column).map(Some) }
    }
}

pub(super) fn of_sqlite(row: &rusqlite::Row<'_>, columns: usize) -> rusqlite::Result<Row> {
    let column = |index| {
        Ok(match row.get_ref(index)? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(value) => Value::Int(value),
            ValueRef::Real(value) => Value::Text(value.to_string()),
            ValueRef::Text(value) | ValueRef::Blob(value) => {
                Value::Text(String::from_utf8_lossy(value).into_owned())
            }
        })
    };
    (0..columns).map(column).collect::<rusqlite::Result<_>>().map(Row)
}

pub(super) fn of_postgres(row: &tokio_postgres::Row) -> Result<Row, tokio_postgres::Error> {
    let column = |(index, column): (usize, &tokio_postgres::Column)| {
        Ok(match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(index)?.into(),
            Type::INT4 => row.try_get::<_, Option<i32>>(index)?.map(i64::from).into(),
            Type::BOOL => row.try_get::<_, Option<bool>>(index)?.into(),
            _ => row.try_get::<_, Option<String>>(index)?.into(),
        })
    };
    row.columns().iter().enumerate().map(column).collect::<Result<_, _>>().map(Row)
}
