//go:build release

package invariants

// Enabled reports whether costly checks run.
const Enabled = false
