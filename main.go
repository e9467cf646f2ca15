// Command lockstep is the broker and everything to work with it: see package
// cli, or run `lockstep --help`.
package main

import (
	"os"

	"github.com/lockstepmq/lockstep/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
