//! `cargo xtask setup`: published engine crates (or a checkout) + a patch series.
//!
//! [`series`] reads the patches, [`overlay`] applies them in memory, [`plan`] finds out which are there already,
//! [`tree`] brings a folder to the result, [`published`] and [`checkout`] are the two kinds of engine.

pub mod checkout;
pub mod overlay;
pub mod plan;
pub mod published;
pub mod series;
pub mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};

use crate::args::SetupArgs;
use crate::steps::Steps;
use crate::workspace::Workspace;
use overlay::Base;
use plan::{Plan, State};
use series::Series;
use tree::{Digests, Record, Tree, Written};

/// Always redirected, even by a series that changes only one of them: two copies of mistralrs-quant, one from the
/// registry and one patched, would be two different types to the compiler.
const ALWAYS: [&str; 2] = ["mistralrs-core", "mistralrs-quant"];

/// # Errors
/// What a person has to mend: a patch that does not fit, files edited by hand, no network, no such series.
pub fn run(workspace: &Workspace, options: &SetupArgs) -> Result<ExitCode> {
    match &options.engine_dir {
        Some(folder) => patch_checkout(workspace, folder, options),
        None if options.check => check_published(workspace, options),
        None => {
            let target = options.out.clone().unwrap_or_else(|| workspace.engine());
            let wanted = Wanted::load(workspace, options)?;
            make(workspace, &wanted, &target, options)?;
            match options.out {
                Some(_) => print_redirects(&wanted.libraries(&target), &target)?,
                None => warn_not_redirected(workspace, &wanted.libraries(&target))?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Before another command: makes engine/ unless it is there, and lets a person work on an edited one.
pub fn ensure(workspace: &Workspace) -> Result<String> {
    let options = SetupArgs::default();
    let wanted = Wanted::load(workspace, &options)?;
    let engine = workspace.engine();
    if engine.is_symlink() {
        return Ok("engine/ is a symbolic link, used as it is".into());
    }
    match wanted.status(&engine)? {
        Status::UpToDate => Ok("engine/ is up to date".into()),
        Status::Edited(files) => Ok(format!(
            "engine/ used as it is, with {} files edited by hand",
            files.len()
        )),
        Status::Absent | Status::Outdated => {
            make(workspace, &wanted, &engine, &options)?;
            Ok("engine/ is ready".into())
        }
    }
}

/// What engine/ is to be made from.
struct Wanted {
    series: Series,
    digest: String,
    crates: BTreeSet<String>,
}

enum Status {
    Absent,
    UpToDate,
    /// Made from other patches or another version, or files are missing.
    Outdated,
    /// Made from these patches, but these files differ from what was written.
    Edited(Vec<String>),
}

impl Wanted {
    fn load(workspace: &Workspace, options: &SetupArgs) -> Result<Self> {
        let version = match &options.series {
            Some(version) => version.clone(),
            None => workspace.engine_version()?,
        };
        let series = Series::load(&workspace.patches(), &version)?;
        let mut crates = series.crates()?;
        crates.extend(ALWAYS.map(str::to_owned));
        Ok(Self {
            digest: series.digest(),
            crates,
            series,
        })
    }

    /// Those that other crates can depend on. A program such as mistralrs-cli is built from its folder, not redirected.
    fn libraries(&self, folder: &Path) -> BTreeSet<String> {
        let is_library =
            |name: &&String| ALWAYS.contains(&name.as_str()) || folder.join(name.as_str()).join("src/lib.rs").is_file();
        self.crates.iter().filter(is_library).cloned().collect()
    }

    fn status(&self, folder: &Path) -> Result<Status> {
        if !folder.exists() {
            return Ok(Status::Absent);
        }
        let Some(record) = Record::load(folder) else {
            return Ok(Status::Outdated);
        };
        if !record.made_from(&self.series.version, &self.digest, &self.crates) {
            return Ok(Status::Outdated);
        }
        let on_disk = tree::digests_on_disk(folder, &record.crates)?;
        if on_disk == record.files {
            return Ok(Status::UpToDate);
        }
        let edited = edited_by_hand(&on_disk, &record.files, &record.files);
        Ok(if edited.is_empty() {
            Status::Outdated
        } else {
            Status::Edited(edited)
        })
    }

    fn base(&self, workspace: &Workspace, source: Option<&Path>) -> Result<Base> {
        match source {
            Some(folder) => published::in_folder(folder, &self.series.version, &self.crates),
            None => published::fetch(workspace, &self.series.version, &self.crates),
        }
    }
}

/// Files that are neither what was written nor what would be written now, and files that this tool never wrote. A file
/// that was deleted holds no work to lose.
fn edited_by_hand(on_disk: &Digests, written: &Digests, wanted: &Digests) -> Vec<String> {
    let differs =
        |(path, digest): &(&String, &String)| written.get(*path) != Some(digest) && wanted.get(*path) != Some(digest);
    on_disk.iter().filter(differs).map(|(path, _)| path.clone()).collect()
}

fn make(workspace: &Workspace, wanted: &Wanted, target: &Path, options: &SetupArgs) -> Result<()> {
    let shown = target
        .strip_prefix(workspace.root())
        .unwrap_or(target)
        .display()
        .to_string();
    if target.is_symlink() {
        bail!(
            "{shown} is a symbolic link to {}; remove the link first",
            fs::read_link(target)?.display()
        );
    }
    match wanted.status(target)? {
        Status::UpToDate => {
            println!(
                "{shown}/ is up to date (engine {}, {})",
                wanted.series.version,
                patches(wanted)
            );
            return Ok(());
        }
        Status::Edited(files) if !options.force => bail!(edited_message(&shown, &files)),
        _ => {}
    }
    let mut steps = Steps::new(4);
    let base = steps.loud(&format!("fetch {}", published::join(&wanted.crates)), || {
        let base = wanted.base(workspace, options.source.as_deref())?;
        Ok((base, format!("engine {}", wanted.series.version)))
    })?;
    let changes = steps.quiet("apply the series in memory", || {
        let changes = plan::apply_all(&base, &wanted.series)?;
        let detail = format!("{}, {} files changed", patches(wanted), changes.len());
        Ok((changes, detail))
    })?;
    let (tree, record) = steps.quiet("hash", || {
        let tree = Tree::read(&base, changes)?;
        let crates = wanted.crates.clone();
        let record = Record::new(&wanted.series.version, wanted.digest.clone(), crates, tree.digests());
        let detail = format!("{} files", tree.len());
        Ok(((tree, record), detail))
    })?;
    steps.quiet(&format!("write {shown}/"), || {
        let written = write(target, &tree, &record, &shown, options.force)?;
        Ok(((), written))
    })?;
    println!(
        "{shown}/ is ready (engine {}, {})",
        wanted.series.version,
        patches(wanted)
    );
    Ok(())
}

fn write(target: &Path, tree: &Tree, record: &Record, shown: &str, force: bool) -> Result<Written> {
    let mut on_disk = Digests::new();
    if target.exists() {
        let before = Record::load(target);
        let crates = before.iter().flat_map(|record| &record.crates).chain(&record.crates);
        on_disk = tree::digests_on_disk(target, crates.collect::<BTreeSet<_>>())?;
        let none = Digests::new();
        let written = before.as_ref().map_or(&none, |record| &record.files);
        let edited = edited_by_hand(&on_disk, written, &record.files);
        if !edited.is_empty() && !force {
            bail!(edited_message(shown, &edited));
        }
    }
    tree.sync(target, &on_disk, record)
}

fn edited_message(shown: &str, files: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = format!("{} files in {shown}/ were edited by hand:", files.len());
    for file in files.iter().take(SHOWN) {
        text.push_str(&format!("\n  {file}"));
    }
    if files.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", files.len() - SHOWN));
    }
    text.push_str("\nsave the edits (as a patch, if they are to stay), or overwrite them with --force");
    text
}

fn patches(wanted: &Wanted) -> String {
    count(wanted.series.patches.len(), "patch", "patches")
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn warn_not_redirected(workspace: &Workspace, crates: &BTreeSet<String>) -> Result<()> {
    for name in workspace.not_redirected(crates)? {
        eprintln!(
            "warning: Cargo.toml would build {name} unpatched; add to [patch.crates-io]: \
             {name} = {{ path = \"engine/{name}\" }}"
        );
    }
    Ok(())
}

fn print_redirects(crates: &BTreeSet<String>, folder: &Path) -> Result<()> {
    let folder: PathBuf = fs::canonicalize(folder)?;
    println!("\nadd to the Cargo.toml of your workspace:\n\n[patch.crates-io]");
    for name in crates {
        // A TOML literal string, which takes a Windows path as it is.
        println!("{name} = {{ path = '{}' }}", folder.join(name).display());
    }
    Ok(())
}

fn check_published(workspace: &Workspace, options: &SetupArgs) -> Result<ExitCode> {
    let wanted = Wanted::load(workspace, options)?;
    let base = wanted.base(workspace, options.source.as_deref())?;
    let plan = plan::forward(&base, &wanted.series);
    let code = report(&plan, &format!("engine {}", base.version));
    let engine = match wanted.status(&workspace.engine())? {
        Status::Absent => "engine/ is not there yet: cargo xtask setup".to_owned(),
        Status::UpToDate => "engine/ is up to date".to_owned(),
        Status::Outdated => "engine/ was made from something else: cargo xtask setup".to_owned(),
        Status::Edited(files) => edited_message("engine", &files),
    };
    println!("{engine}");
    Ok(code)
}

fn patch_checkout(workspace: &Workspace, folder: &Path, options: &SetupArgs) -> Result<ExitCode> {
    let version = checkout::version(folder)?;
    let series = checkout::series(&workspace.patches(), &version, options.series.as_deref())?;
    let base = Base::in_folder(&version, folder, &series.crates()?);
    let subject = format!("mistral.rs {version} in {}", folder.display());
    if options.reverse {
        let (taken_off, changes) = plan::reverse(&base, &series)?;
        checkout::write(folder, &changes)?;
        for name in &taken_off {
            println!("taken off        {name}");
        }
        println!("{subject}: {} taken off", count(taken_off.len(), "patch", "patches"));
        return Ok(ExitCode::SUCCESS);
    }
    let plan = plan::forward(&base, &series);
    let code = report(&plan, &subject);
    if options.check || code != ExitCode::SUCCESS {
        return Ok(code);
    }
    checkout::write(folder, &plan.changes)?;
    match plan.changes.len() {
        0 => println!("{subject} has the whole series already"),
        files => println!("{subject}: {} changed", count(files, "file", "files")),
    }
    Ok(code)
}

/// A line per patch on stdout, the reasons on stderr.
fn report(plan: &Plan, subject: &str) -> ExitCode {
    for (name, state) in &plan.states {
        let word = match state {
            State::Applies => "applies",
            State::AlreadyApplied => "already applied",
            State::Fails(_) => "FAILS",
        };
        println!("{word:<16} {name}");
    }
    for rejected in plan.failures() {
        eprintln!("error: {rejected}");
    }
    let applies = plan.count(|state| matches!(state, State::Applies));
    let applied = plan.count(|state| matches!(state, State::AlreadyApplied));
    let fails = plan.count(|state| matches!(state, State::Fails(_)));
    println!("{subject}: {applies} apply, {applied} already applied, {fails} fail");
    if fails == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
