//go:build !release

// Package invariants switches the costly checks. They are on in every ordinary
// build, so that tests and development runs have them; binaries that are
// shipped or measured are built with `-tags release`.
package invariants

// Enabled reports whether costly checks run. It is a constant: code behind
// `if invariants.Enabled` disappears from release builds.
const Enabled = true
