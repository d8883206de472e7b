//! `assigned.json` in the run directory: the virtual addresses this program has added, or is about to.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::network::Error;
use crate::notes::{self, ASSIGNED};

/// Interface names by virtual address.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    assigned: BTreeMap<IpAddr, String>,
}

impl Record {
    /// The record in `run_dir`; an empty one if there is none.
    pub(super) fn read(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join(ASSIGNED);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|source| Error::Corrupt { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Record { action: "read", path, source }),
        }
    }

    /// Replaces the record in `run_dir` in one step; an empty one is no file.
    pub(super) fn write(&self, run_dir: &Path) -> Result<(), Error> {
        let (action, outcome) = if self.assigned.is_empty() {
            ("delete", notes::remove(run_dir, ASSIGNED))
        } else {
            ("write", notes::replace(run_dir, ASSIGNED, self))
        };
        outcome.map_err(|source| Error::Record { action, path: run_dir.join(ASSIGNED), source })
    }

    pub(super) fn interface(&self, vip: IpAddr) -> Option<&str> {
        self.assigned.get(&vip).map(String::as_str)
    }

    pub(super) fn insert(&mut self, vip: IpAddr, interface: String) {
        self.assigned.insert(vip, interface);
    }

    pub(super) fn remove(&mut self, vip: IpAddr) {
        self.assigned.remove(&vip);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.assigned.iter().map(|(&vip, interface)| (vip, interface.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A directory of its own for a test, removed afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("lb-record-{name}-{}", std::process::id()));
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_and_an_empty_record_leaves_no_file() {
        let dir = Scratch::new("round-trip");
        let mut record = Record::read(&dir.0).expect("no record is an empty one");
        assert_eq!(record, Record::default());
        record.write(&dir.0).expect("nothing to write");
        assert!(!dir.0.exists());

        record.insert("10.0.1.100".parse().unwrap(), "eth0".to_owned());
        record.insert("fd00:1::100".parse().unwrap(), "eth1".to_owned());
        record.write(&dir.0).expect("written");
        assert_eq!(Record::read(&dir.0).expect("read"), record);

        record.remove("10.0.1.100".parse().unwrap());
        record.remove("fd00:1::100".parse().unwrap());
        record.write(&dir.0).expect("deleted");
        assert_eq!(fs::read_dir(&dir.0).expect("the directory").count(), 0);
    }

    #[test]
    fn a_record_that_is_none_is_refused_with_a_remedy() {
        let dir = Scratch::new("corrupt");
        fs::create_dir_all(&dir.0).expect("a directory");
        for text in ["", "{", r#"{"assigned":{"10.0.1":"eth0"}}"#, r#"{"assigned":{},"more":1}"#] {
            fs::write(dir.0.join(ASSIGNED), text).expect("written");
            let error = Record::read(&dir.0).expect_err(text).to_string();
            assert!(error.contains("assigned.json") && error.contains("delete it"), "{error}");
        }
    }
}
