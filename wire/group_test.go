package wire

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

var goldenGroupSettings = GroupSettings{
	Mode: ModeSerial, Scope: ScopeKey, Holder: HolderAny, Binding: BindingGather, Order: OrderReplay, Hold: true, DeadLetterMode: DeadLetterPark, Failback: true,
	Window: 1, SessionMs: 2, AckWaitMs: 3, RevokeMs: 4, BackoffMs: 5, BackoffMaxMs: 6, DeliveryLimit: 7, DeadLetter: "d",
}

func TestGroupSettingsGolden(t *testing.T) {
	want := unhex(t, `
		02 01 02 03 02          // serial, key, any, gather, replay
		01 02 01                // hold, park, failback
		01 00 00 00             // window 1
		02 00 00 00             // session 2 ms
		03 00 00 00             // ack wait 3 ms
		04 00 00 00             // revoke 4 ms
		05 00 00 00             // backoff 5 ms
		06 00 00 00             // to 6 ms
		07 00 00 00             // 7 attempts
		01 00 64                // "d"
	`)
	require.Equal(t, want, goldenGroupSettings.Append(nil))
	got, rest, err := ParseGroupSettings(append(want, 0xee))
	require.NoError(t, err)
	require.Equal(t, goldenGroupSettings, got)
	require.Equal(t, []byte{0xee}, rest)
	for n := range want {
		_, _, err := ParseGroupSettings(want[:n])
		require.ErrorIs(t, err, CodeMalformed, "cut to %d bytes", n)
	}
}

func TestGroupSettingsAreNamedInJSON(t *testing.T) {
	text, err := json.Marshal(goldenGroupSettings)
	require.NoError(t, err)
	require.JSONEq(t, `{"mode":"serial","scope":"key","holder":"any","binding":"gather","order":"replay","hold":true,"dead_letter_mode":"park","failback":true,
		"window":1,"session_ms":2,"ack_wait_ms":3,"revoke_ms":4,"backoff_ms":5,"backoff_max_ms":6,"delivery_limit":7,"dead_letter":"d"}`, string(text))
	var got GroupSettings
	require.NoError(t, json.Unmarshal(text, &got))
	require.Equal(t, goldenGroupSettings, got)

	text, err = json.Marshal(GroupSettings{})
	require.NoError(t, err)
	require.Equal(t, `{}`, string(text))
	require.ErrorContains(t, json.Unmarshal([]byte(`{"mode":"fair"}`), &got), `mode "fair" is none of ["shared" "serial" "stream"]`)
	require.Equal(t, "unknown (9)", GroupMode(9).String())
	require.Equal(t, "group gone", ReasonGroupGone.String())
}

func TestGroupSettingsHaveDefaults(t *testing.T) {
	require.Equal(t, GroupSettings{
		Mode: ModeShared, Scope: ScopeKey, Holder: HolderAny, Binding: BindingCover, Order: OrderStrict, DeadLetterMode: DeadLetterNone,
		Window: 1, SessionMs: 6_000, AckWaitMs: 30_000, RevokeMs: 5_000, BackoffMs: 1_000, BackoffMaxMs: 300_000,
	}, GroupSettings{}.WithDefaults())
	require.Equal(t, goldenGroupSettings, goldenGroupSettings.WithDefaults())
	require.Equal(t, HolderSticky, GroupSettings{Mode: ModeStream}.WithDefaults().Holder)
	require.Equal(t, OrderReplay, GroupSettings{Mode: ModeStream}.WithDefaults().Order)
	require.Equal(t, OrderStrict, GroupSettings{Mode: ModeStream, Order: OrderStrict}.WithDefaults().Order)
	require.Equal(t, HolderSticky, GroupSettings{Mode: ModeSerial, Scope: ScopeDestination}.WithDefaults().Holder)
	require.Equal(t, DeadLetterRecord, GroupSettings{DeadLetter: "d"}.WithDefaults().DeadLetterMode)
}

func TestRangesOfGroupsAreChecked(t *testing.T) {
	for name, items := range map[string][]Outcome{
		"none in it":     {{Offset: 1}},
		"wraps":          {{Offset: 1<<64 - 1, Count: 2}},
		"twice the same": {{Offset: 1, Count: 1}, {Offset: 1, Count: 1}},
		"overlap":        {{Offset: 1, Count: 3}, {Offset: 3, Count: 1}},
		"descend":        {{Offset: 3, Count: 1}, {Offset: 1, Count: 1}},
		"unknown kind":   {{Offset: 1, Count: 1, Kind: OutcomeLostSeen + 1}},
	} {
		require.ErrorIs(t, new(GroupOutcomes).Parse((&GroupOutcomes{Outcomes: items}).Append(nil)), CodeMalformed, name)
		require.ErrorIs(t, new(AttachRequest).Parse((&AttachRequest{Claims: items}).Append(nil)), CodeMalformed, name)
	}
	grants := []Grant{{Offset: 3, Count: 1}, {Offset: 3, Count: 1}}
	require.ErrorIs(t, new(GroupDeliver).Parse((&GroupDeliver{Grants: grants}).Append(nil)), CodeMalformed)
	// What a broker says need not ascend.
	require.NoError(t, new(GroupAnswers).Parse((&GroupAnswers{Answers: []OutcomeAnswer{{Offset: 3, Count: 1}, {Offset: 1, Count: 1}}}).Append(nil)))

	many := make([]Outcome, MaxGroupItems+1)
	for i := range many {
		many[i] = Outcome{Offset: Offset(i), Count: 1}
	}
	require.ErrorIs(t, new(GroupOutcomes).Parse((&GroupOutcomes{Outcomes: many}).Append(nil)), CodeMalformed)
	require.NoError(t, new(GroupOutcomes).Parse((&GroupOutcomes{Outcomes: many[1:]}).Append(nil)))

	good := (&GroupOutcomes{Outcomes: []Outcome{{Offset: 1, Count: 1, Text: "x"}, {Offset: 2, Count: 1, Text: "y"}}}).Append(nil)
	require.NoError(t, new(GroupOutcomes).Parse(good))
	for name, change := range map[string]func(b []byte){
		"the text of a range that is not there": func(b []byte) { b[len(b)-7] = 2 },
		"two texts of one range":                func(b []byte) { b[len(b)-7] = 0 },
	} {
		bad := append([]byte(nil), good...)
		change(bad)
		require.ErrorIs(t, new(GroupOutcomes).Parse(bad), CodeMalformed, name)
	}
}

// Acks come in at the rate of records: their frames are read without allocating.
func TestOutcomesAreReadIntoTheSameMemory(t *testing.T) {
	src := (&GroupOutcomes{Outcomes: []Outcome{{Offset: 1, Count: 2, Epoch: 3, Kind: OutcomeAck}, {Offset: 7, Count: 1, Epoch: 3, Kind: OutcomeAck}}}).Append(nil)
	var m GroupOutcomes
	require.NoError(t, m.Parse(src))
	require.Zero(t, testing.AllocsPerRun(10, func() {
		if m.Parse(src) != nil || len(m.Outcomes) != 2 {
			panic("outcomes were not read")
		}
	}))
}

func FuzzGroupMessages(f *testing.F) {
	for _, test := range goldenMessages {
		if test.opcode >= OpGroupAttach {
			f.Add(uint8(test.opcode), test.response, unhex(f, test.hex))
		}
	}
	f.Fuzz(func(t *testing.T, op uint8, response bool, src []byte) {
		for _, test := range goldenMessages {
			if uint8(test.opcode) != op || test.response != response || op < uint8(OpGroupAttach) {
				continue
			}
			m := fresh(test.message)
			if m.Parse(src) != nil {
				continue
			}
			require.Equal(t, src, m.Append([]byte{}))
		}
	})
}
