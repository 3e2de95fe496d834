//! A manifest on disk.

use super::digest::Digest;
use super::error::ManifestError;
use super::layer::Layer;
use super::text::{self, Parsed};
use super::{curves, scales, Manifest, CURVES_FILE, MANIFEST_FILE, SCALES_FILE};
use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// 16384 layers of a few hundred outliers each fit in less than half of it.
const MAX_YAML_BYTES: u64 = 64 << 20;

impl Manifest {
    /// Reads `path` (a manifest.yaml) and the scales beside it, and checks both.
    ///
    /// # Errors
    /// Files that cannot be read, are truncated or altered, or do not fit together. Each names the file.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let yaml = read(path, MAX_YAML_BYTES)?;
        let parsed = parse(&yaml).map_err(in_file(path))?;
        let scales_path = path.with_file_name(SCALES_FILE);
        let shapes: Vec<(&str, usize)> = shapes(&parsed).collect();
        let bytes = read(&scales_path, scales::size_limit(parsed.header.world_size, &shapes))?;
        let ranges = read_ranges(&parsed, &shapes, &bytes).map_err(in_file(&scales_path))?;
        let curves = parsed.curves;
        let manifest = assemble(parsed, ranges).map_err(in_file(path))?;
        match curves {
            None => Ok(manifest),
            Some(expected) => manifest.load_curves(&path.with_file_name(CURVES_FILE), expected),
        }
    }

    fn load_curves(mut self, path: &Path, expected: Digest) -> Result<Self, ManifestError> {
        let bytes = read(path, curves::size_limit(&self.layers))?;
        check_digest(&bytes, expected).map_err(in_file(path))?;
        let curves = curves::from_bytes(&bytes, &self.layers).map_err(in_file(path))?;
        let layers = std::mem::take(&mut self.layers).into_iter().zip(curves);
        self.layers = layers
            .map(|(layer, (curves, shape))| layer.with_curves(curves, shape))
            .collect::<Result<_, _>>()
            .map_err(in_file(path))?;
        self.curves = Some(expected);
        Ok(self)
    }

    /// As [`Manifest::load`], from the bytes of the two files.
    ///
    /// # Errors
    /// Files that are truncated or altered, or do not fit together.
    pub fn from_bytes(yaml: &[u8], scales: &[u8]) -> Result<Self, ManifestError> {
        let parsed = parse(yaml)?;
        let shapes: Vec<(&str, usize)> = shapes(&parsed).collect();
        let ranges = read_ranges(&parsed, &shapes, scales)?;
        assemble(parsed, ranges)
    }

    /// Writes both files into `dir`, creating it if need be, and returns the path of the YAML. Each file appears under its
    /// name only once complete and on disk. The scales go first: a crash between the two leaves an old YAML that refuses the
    /// new scales, and never a YAML without its scales.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, ManifestError> {
        std::fs::create_dir_all(dir).map_err(|source| ManifestError::Write {
            path: dir.to_path_buf(),
            source,
        })?;
        replace(dir, SCALES_FILE, &scales::to_bytes(self)?)?;
        if self.curves.is_some() {
            replace(dir, CURVES_FILE, &curves::to_bytes(&self.layers)?)?;
        }
        // Scales written by another version of the library may have other bytes for the same numbers.
        let rendered = text::render(&Self::new(self.header.clone(), self.layers.clone())?);
        replace(dir, MANIFEST_FILE, rendered.as_bytes())
    }
}

fn parse(yaml: &[u8]) -> Result<Parsed, ManifestError> {
    let text = std::str::from_utf8(yaml).map_err(|error| ManifestError::Syntax {
        message: error.to_string(),
    })?;
    text::parse(text)
}

fn shapes(parsed: &Parsed) -> impl Iterator<Item = (&str, usize)> {
    parsed.layers.iter().map(|layer| (layer.name.as_str(), layer.features))
}

fn read_ranges(parsed: &Parsed, shapes: &[(&str, usize)], bytes: &[u8]) -> Result<Vec<Vec<f32>>, ManifestError> {
    check_digest(bytes, parsed.scales)?;
    scales::from_bytes(bytes, parsed.header.world_size, shapes)
}

fn check_digest(bytes: &[u8], expected: Digest) -> Result<(), ManifestError> {
    let (got, bytes) = (Digest::of(bytes), bytes.len() as u64);
    if got == expected {
        return Ok(());
    }
    Err(ManifestError::ScalesDigest { expected, got, bytes })
}

fn assemble(parsed: Parsed, ranges: Vec<Vec<f32>>) -> Result<Manifest, ManifestError> {
    let layers = parsed
        .layers
        .into_iter()
        .zip(ranges)
        .map(|(layer, ranges)| {
            let sqnr = layer.summary.expected_sqnr_db;
            let built = Layer::new(&layer.name, layer.features, layer.outliers, ranges, sqnr)?;
            let built = built.with_summary(layer.summary);
            match layer.priority {
                None => Ok(built),
                Some(priority) => built.with_priority(priority),
            }
        })
        .collect::<Result<_, ManifestError>>()?;
    Manifest::index(parsed.header, layers, parsed.scales)
}

/// Reads at most `limit` bytes: a file that is larger is not the file that was written here.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ManifestError> {
    let fail = |source| ManifestError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let on_disk = file.metadata().map_err(fail)?.len();
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)? as u64;
    if read > limit {
        return Err(in_file(path)(ManifestError::TooLarge {
            bytes: on_disk.max(read),
            limit,
        }));
    }
    Ok(bytes)
}

fn in_file(path: &Path) -> impl Fn(ManifestError) -> ManifestError + '_ {
    |source| ManifestError::InFile {
        path: path.to_path_buf(),
        source: Box::new(source),
    }
}

/// Puts `bytes` at `dir/name` in one step: a temporary file in the same folder, so that the rename stays on one file
/// system, synced before it gets the name.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, ManifestError> {
    let path = dir.join(name);
    let attempt = || -> Result<(), Error> {
        let mut builder = tempfile::Builder::new();
        // The default is 0600; other users serve the model, and the umask still applies.
        builder
            .prefix(name)
            .suffix(".tmp")
            .permissions(std::fs::Permissions::from_mode(0o666));
        let mut file = builder.tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    attempt().map_err(|source| ManifestError::Write {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}
