package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

// versionInfo is what `lockstep version -o json` prints.
type versionInfo struct {
	Lockstep string         `json:"lockstep"` // module version, "dev" for a build from a checkout
	Revision string         `json:"revision,omitempty"`
	Modified bool           `json:"modified,omitempty"` // built from a changed checkout
	Go       string         `json:"go"`
	Platform string         `json:"platform"`
	Formats  versionFormats `json:"formats"`
}

// versionFormats are the newest versions this build writes and reads.
type versionFormats struct {
	Protocol    int `json:"protocol"`
	RecordBatch int `json:"record_batch"`
	StoredFrame int `json:"stored_frame"`
}

func version() versionInfo {
	v := versionInfo{
		Lockstep: server.Version(),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Formats: versionFormats{
			Protocol:    wire.MaxProtocolVersion,
			RecordBatch: wire.BatchMagic,
			StoredFrame: wire.FrameVersion,
		},
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this binary and of its formats",
		Example: `  lockstep version
  lockstep version -o json`,
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		v := version()
		if output.value == "json" {
			return a.printJSON(v)
		}
		revision := v.Revision
		if v.Modified {
			revision += ", changed"
		}
		if revision != "" {
			revision = " (" + revision + ")"
		}
		_, err := fmt.Fprintf(a.stdout, "lockstep %s%s\n%s %s\nprotocol %d, record batch %d, stored frame %d\n",
			v.Lockstep, revision, v.Go, v.Platform, v.Formats.Protocol, v.Formats.RecordBatch, v.Formats.StoredFrame)
		return outputError(err)
	}
	return c
}
