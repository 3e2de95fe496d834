//! Where the configuration of a program comes from, when several places may name one.

use super::error::ConfigError;
use super::plan::Plan;
use super::raw::describe;
use serde::Serialize;
use serde_yaml::{Mapping, Value};
use std::path::{Path, PathBuf};

/// The environment variable that names a configuration file.
pub const CONFIG_VARIABLE: &str = "MISTRALRS_TPQ_CONFIG";
/// The table's name in a program's own configuration file.
const TABLE: &str = "tpq";
/// The key in the table that names a file, in place of the configuration itself.
const PATH_KEY: &str = "config";

#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Source {
    File(PathBuf),
    /// Keys of the configuration inside another file, at `origin`.
    Table {
        table: Mapping,
        origin: PathBuf,
    },
}

impl Source {
    /// The flag, else the table of the program's own file (the table and that file's path), else the variable
    /// `MISTRALRS_TPQ_CONFIG`; `None` when there is none of them: off.
    ///
    /// The table is `tpq = "tpq.yaml"`, or `[tpq]` with `config = "tpq.yaml"`, or `[tpq]` with the keys of the
    /// configuration itself. Paths in it are relative to the file it is in.
    ///
    /// # Errors
    /// A table that is neither a path nor keys.
    pub fn choose(flag: Option<&Path>, table: Option<(&impl Serialize, &Path)>) -> Result<Option<Self>, ConfigError> {
        let variable = std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from);
        Self::first(flag, table, variable)
    }

    fn first(
        flag: Option<&Path>,
        table: Option<(&impl Serialize, &Path)>,
        variable: Option<PathBuf>,
    ) -> Result<Option<Self>, ConfigError> {
        if let Some(flag) = flag {
            return Ok(Some(Self::File(flag.to_owned())));
        }
        if let Some((table, origin)) = table {
            return Self::of_table(table, origin).map(Some);
        }
        // Set to nothing counts as not set: that is how compose files and unit files blank a variable.
        Ok(variable.filter(|path| !path.as_os_str().is_empty()).map(Self::File))
    }

    fn of_table(table: &impl Serialize, origin: &Path) -> Result<Self, ConfigError> {
        let value = serde_yaml::to_value(table).map_err(|error| wrong(origin, TABLE, error.to_string()))?;
        let beside = |path: &str| Self::File(origin.parent().unwrap_or(Path::new("")).join(path));
        match value {
            Value::String(path) => Ok(beside(&path)),
            Value::Mapping(table) => match table.get(PATH_KEY) {
                None => Ok(Self::Table {
                    table,
                    origin: origin.to_owned(),
                }),
                Some(Value::String(path)) if table.len() == 1 => Ok(beside(path)),
                Some(Value::String(_)) => {
                    let others = format!("a path beside {} other keys", table.len() - 1);
                    Err(wrong(origin, "tpq.config", others))
                }
                Some(other) => Err(wrong(origin, "tpq.config", describe(other))),
            },
            other => Err(wrong(origin, TABLE, describe(&other))),
        }
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// Those of [`Plan::load`] and [`Plan::parse`]; in a table, keys are named from the file's top (`tpq.codec.kind`).
    pub fn load(&self) -> Result<Plan, ConfigError> {
        match self {
            Self::File(path) => Plan::load(path),
            Self::Table { table, origin } => Plan::from_table(TABLE, &Value::Mapping(table.clone()), origin),
        }
    }
}

fn wrong(origin: &Path, key: &str, value: String) -> ConfigError {
    ConfigError::Value {
        at: super::At {
            file: origin.to_owned(),
            line: None,
        },
        key: key.to_owned(),
        value,
        expected: "the path of a tpq configuration alone, or a table with its keys".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CodecPlan;
    use serde_json::json;

    fn first(flag: Option<&str>, table: Option<serde_json::Value>, variable: Option<&str>) -> Option<Source> {
        let table = table.as_ref().map(|table| (table, Path::new("etc/serve.toml")));
        Source::first(flag.map(Path::new), table, variable.map(PathBuf::from)).unwrap()
    }

    fn file(path: &str) -> Option<Source> {
        Some(Source::File(path.into()))
    }

    #[test]
    fn the_flag_goes_before_the_table_and_the_table_before_the_variable() {
        let table = || Some(json!("beside.yaml"));
        assert_eq!(first(Some("flag.yaml"), table(), Some("env.yaml")), file("flag.yaml"));
        assert_eq!(first(None, table(), Some("env.yaml")), file("etc/beside.yaml"));
        assert_eq!(first(None, None, Some("env.yaml")), file("env.yaml"));
        assert_eq!(first(None, None, Some("")), None);
        assert_eq!(first(None, None, None), None);
    }

    #[test]
    fn a_table_names_a_file_or_is_the_configuration() {
        assert_eq!(first(None, Some(json!({"config": "/a.yaml"})), None), file("/a.yaml"));
        let inline = json!({"version": 1, "codec": {"kind": "paper", "manifest": "m.yaml"}});
        let plan = first(None, Some(inline), None).unwrap().load().unwrap();
        assert_eq!(
            plan.codec,
            CodecPlan::Paper {
                manifest: "etc/m.yaml".into()
            }
        );
    }

    #[test]
    fn errors_in_a_table_name_the_file_the_whole_key_and_the_nearest_known_key() {
        let message = |table: serde_json::Value| {
            let source = Source::of_table(&table, Path::new("etc/serve.toml"));
            source.and_then(|source| source.load()).unwrap_err().to_string()
        };
        let unknown = message(json!({"version": 1, "codec": {"kind": "dynamic"}, "exchnge": {}}));
        assert!(
            unknown.starts_with("etc/serve.toml: unknown key `tpq.exchnge`, did you mean `tpq.exchange`?"),
            "{unknown}"
        );
        let deep = message(json!({"version": 1, "codec": {"kin": "dynamic"}}));
        assert!(
            deep.contains("`tpq.codec.kin`, did you mean `tpq.codec.kind`?"),
            "{deep}"
        );
        let word = message(json!({"version": 1, "codec": {"kind": "dynmic"}}));
        assert!(
            word.contains("`tpq.codec.kind` is `dynmic`") && word.contains("did you mean `dynamic`"),
            "{word}"
        );
        let number = message(json!(3));
        assert!(
            number.contains("etc/serve.toml: `tpq` is 3, expected the path"),
            "{number}"
        );
        let both = message(json!({"config": "a.yaml", "version": 1}));
        assert!(both.contains("`tpq.config` is a path beside 1 other keys"), "{both}");
    }
}
