//! Running other programs, and saying which.

use std::env;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Prints the command, then runs it with its output on ours. Fails when it does.
pub fn run(command: &mut Command) -> Result<()> {
    let line = shell_line(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

/// Prints the command, then becomes it: it closes the output, and its exit status is ours. Returns only if it
/// cannot be started.
pub fn hand_over(command: &mut Command) -> Result<()> {
    let line = shell_line(command);
    eprintln!("$ {line}");
    Err(command.exec()).with_context(|| format!("cannot run `{line}`"))
}

/// What the command prints on stdout, without the white space around it; `None` when it cannot be started or
/// fails. For probing: nothing is printed.
pub fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Looks a program up in `$PATH` and where Debian keeps those of root, which a user's `$PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The command as one would type it: variables set for it, program, arguments.
pub fn shell_line(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(line, "{}={} ", name.display(), quote(&value.to_string_lossy()));
        }
    }
    line += &quote(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        line += " ";
        line += &quote(&argument.to_string_lossy());
    }
    line
}

/// Quotes a word for a POSIX shell where it needs it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("cargo");
        command.env("FLAGS", "-Ca -Cb").env_remove("HOME").args(["say", "it's", "", "a=b"]);
        assert_eq!(shell_line(&command), r"FLAGS='-Ca -Cb' cargo say 'it'\''s' '' a=b");
    }

    #[test]
    fn probing_tells_success_from_failure() {
        assert_eq!(probe(Command::new("sh").args(["-c", "echo ' yes '"])).as_deref(), Some("yes"));
        assert_eq!(probe(Command::new("sh").args(["-c", "echo no; exit 1"])), None);
        assert_eq!(probe(&mut Command::new("/nowhere/to/be/found")), None);
    }
}
