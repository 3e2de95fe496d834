//! docs/migrate.md, followed to the letter on two network namespaces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::process::{clean, succeed, Finished, SERVER};
use crate::common::{model, turn};

const PAGE: &str = include_str!("../../../docs/migrate.md");
const LIMIT: Duration = Duration::from_secs(180);

/// A fenced block with `host=` in its first line: what someone on that host does.
struct Step {
    section: &'static str,
    host: &'static str,
    /// To be written; a step without it is run.
    file: Option<&'static str>,
    text: String,
}

fn steps() -> Vec<Step> {
    let (mut section, mut steps) = ("", Vec::new());
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        }
        let Some(label) = line.strip_prefix("```").filter(|label| !label.is_empty()) else {
            continue;
        };
        let text: String = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .flat_map(|line| [line, "\n"])
            .collect();
        let value = |key: &str| {
            label
                .split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        if let Some(host) = value("host") {
            let file = value("file");
            steps.push(Step {
                section,
                host,
                file,
                text,
            });
        }
    }
    steps
}

/// Two hosts' folders, and the programs on their path.
struct Hosts {
    folder: tempfile::TempDir,
}

impl Hosts {
    /// As the section "Prepare" leaves them, with the copy it asks for made.
    fn prepared() -> Self {
        let hosts = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for host in ["a", "b"] {
            std::fs::create_dir(hosts.of(host)).unwrap();
        }
        let script = hosts
            .follow("Prepare")
            .remove("a")
            .expect("commands for the first host");
        let mut prepare = clean("/bin/sh");
        prepare.arg("-e").arg(script).current_dir(hosts.of("a"));
        succeed(prepare, LIMIT);
        for file in ["tpq.secret", "tpq.yaml"] {
            std::fs::copy(hosts.of("a").join(file), hosts.of("b").join(file)).unwrap();
        }
        hosts
    }

    fn of(&self, host: &str) -> PathBuf {
        self.folder.path().join(host)
    }

    /// Writes the files of `section`, and its commands as a script for each host.
    fn follow(&self, section: &str) -> BTreeMap<&'static str, PathBuf> {
        let mut scripts = BTreeMap::<_, String>::new();
        for step in steps().into_iter().filter(|step| step.section == section) {
            match step.file {
                Some(file) => std::fs::write(self.of(step.host).join(file), step.text).unwrap(),
                None => scripts.entry(step.host).or_default().push_str(&step.text),
            }
        }
        assert!(
            !scripts.is_empty(),
            "docs/migrate.md has no section {section:?} with commands"
        );
        let written = scripts.into_iter().map(|(host, text)| {
            let path = self
                .of(host)
                .join(format!("{}.sh", section.replace([' ', '`', '*'], "")));
            std::fs::write(&path, text).unwrap();
            (host, path)
        });
        written.collect()
    }

    /// Runs `section` on both hosts and the page's check on the first.
    fn serve(&self, section: &str) -> Finished {
        let scripts = self.follow(section);
        let check = self.follow("Check").remove("a").expect("a check on the first host");
        let nobody = PathBuf::from("/dev/null");
        let mut command = in_namespaces();
        command
            .arg(&scripts["a"])
            .arg(scripts.get("b").unwrap_or(&nobody))
            .arg(check);
        succeed(command, LIMIT)
    }
}

fn in_namespaces() -> Command {
    let mut command = clean(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/multi-host/namespaces.sh"));
    let programs = Path::new(SERVER).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).env("MODEL", model::demo());
    command
}

/// The completion among all that the servers and the page's commands printed.
fn text(finished: &Finished) -> String {
    let at = finished
        .stdout
        .find("{\"id\":")
        .unwrap_or_else(|| panic!("no answer in {}", finished.stdout));
    let mut answers = serde_json::Deserializer::from_str(&finished.stdout[at..]).into_iter::<serde_json::Value>();
    let answer = answers.next().unwrap().unwrap();
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn both_kinds_of_cluster_become_tpq_clusters_and_go_back_as_the_page_says() {
    let _turn = turn();
    let hosts = Hosts::prepared();
    let mut answers = Vec::new();
    for section in ["A `RING_CONFIG` cluster", "A `MISTRALRS_MN_*` cluster"] {
        let finished = hosts.serve(section);
        let log = finished.stdout.clone() + &finished.stderr;
        let chosen = log.lines().filter(|line| line.contains("exchange chosen")).count();
        assert!(chosen >= 2, "{section}: both ranks say what they exchange\n{log}");
        answers.push(text(&finished));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(!answers[0].is_empty());

    let back = hosts.serve("How to go back");
    assert!(!text(&back).is_empty());
    let log = back.stdout.clone() + &back.stderr;
    assert!(!log.contains("exchange chosen"), "{log}");
}
