//! `lb generate`, for packagers: manual pages and shell completions from the definitions of the commands.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

use super::{Cli, OK};

/// What the page of `lb` itself says besides.
const FILES: &str = r#".SH FILES
.TP
\fI/etc/lb/lb.toml\fR
the configuration that the service runs with
.TP
\fI/run/NAME/api.sock\fR
the socket on which instance NAME answers the other commands and HTTP
.TP
\fI/sys/fs/bpf/NAME/\fR
its pinned maps and links
.TP
\fI/usr/share/doc/lb/\fR
the configuration reference, the operating guide and examples
"#;

#[derive(Debug, Args)]
pub(super) struct Generate {
    /// Directory to write to; `man` and `completions` are made in it
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

impl Generate {
    pub(super) fn execute(&self) -> Result<u8> {
        let mut command = Cli::command();
        write_completions(&mut command, &self.directory.join("completions"))?;
        command.build();
        write_manual(&command, &self.directory.join("man"))?;
        Ok(OK)
    }
}

fn write_completions(command: &mut Command, directory: &Path) -> Result<()> {
    create(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, command, "lb", directory)
            .with_context(|| format!("cannot write the completions for {shell}"))?;
    }
    Ok(())
}

/// One page for `lb`, and one for each command that is shown.
fn write_manual(command: &Command, directory: &Path) -> Result<()> {
    create(directory)?;
    write_page(command, directory, FILES)?;
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    command.get_subcommands().filter(shown).try_for_each(|command| write_page(command, directory, ""))
}

fn write_page(command: &Command, directory: &Path, more: &str) -> Result<()> {
    use std::io::Write as _;
    let page = Man::new(command.clone()).section("8").manual("System administration");
    let path = directory.join(page.get_filename());
    File::create(&path)
        .and_then(|mut file| {
            page.render(&mut file)?;
            file.write_all(more.as_bytes())
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}
