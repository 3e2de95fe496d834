//! The committed series: messages, what they may touch, and the list in patches/README.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn patches() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches")
}

/// Version -> file name -> text.
fn series() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut series = BTreeMap::<_, BTreeMap<_, _>>::new();
    for folder in fs::read_dir(patches()).unwrap().map(|entry| entry.unwrap().path()) {
        if !folder.is_dir() {
            continue;
        }
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let texts = files.map(|path| (name(&path), fs::read_to_string(&path).unwrap()));
        series.insert(name(&folder), texts.collect());
    }
    series
}

#[test]
fn every_patch_begins_with_a_message_that_stands_alone() {
    for (version, patches) in series() {
        for (name, text) in patches {
            let (message, _) = text.split_once("diff --git ").unwrap();
            let lines: Vec<_> = message.trim_end().lines().collect();
            assert!(
                lines.len() > 2 && lines[1].is_empty(),
                "{version}/{name}: a title, an empty line, a reason"
            );
            assert!(
                !lines[0].ends_with('.') && lines[0].len() <= 80,
                "{version}/{name}: {:?}",
                lines[0]
            );
            assert!(
                lines.iter().all(|line| line.len() <= 104),
                "{version}/{name}: a long line"
            );
            // Offered upstream by itself: nothing in it may lean on the order here.
            assert!(
                !message.contains(".patch") && !message.contains("series"),
                "{version}/{name}"
            );
        }
    }
}

#[test]
fn no_patch_touches_a_manifest_that_cargo_rewrites_on_publication() {
    for (version, patches) in series() {
        for (name, text) in patches {
            assert!(!text.contains("/Cargo.toml\n"), "{version}/{name}");
        }
    }
}

/// Rows `| 0001 name | ... | +1 -2 | ... |` below `## VERSION`: number -> the cell with the size.
fn listed(version: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(patches().join("README.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n## {version}\n")).expect("a section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(' '));
    let rows = rows.filter(|(number, _)| number.len() == 4 && number.chars().all(|digit| digit.is_ascii_digit()));
    rows.map(|(number, rest)| {
        let mut cells = rest.split('|').map(str::trim);
        let size = cells.find(|cell| cell.starts_with('+')).expect("a size");
        (number.to_owned(), size.to_owned())
    })
    .collect()
}

fn size(text: &str) -> String {
    let count = |sign: char| {
        let lines = text.lines().filter(|line| line.starts_with(sign));
        lines
            .filter(|line| !line.starts_with("+++ ") && !line.starts_with("--- "))
            .count()
    };
    format!("+{} -{}", count('+'), count('-'))
}

#[test]
fn the_readme_lists_every_patch_with_its_size() {
    for (version, patches) in series() {
        let present: BTreeMap<_, _> = patches
            .iter()
            .map(|(name, text)| (name[..4].to_owned(), size(text)))
            .collect();
        assert_eq!(listed(&version), present, "{version}");
    }
}
