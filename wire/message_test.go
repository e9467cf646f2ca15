package wire

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenMessage is one message, its opcode and direction, and its bytes.
type goldenMessage struct {
	name     string
	opcode   Opcode
	response bool
	message  Message
	hex      string
}

var goldenSettings = Settings{
	Partitions: 4, Replicas: 3, Storage: StorageMemory, Sync: SyncOS,
	RetentionTimeMs: 86_400_000, RetentionBytes: Unlimited,
	MaxRecordBytes: 1 << 20, SegmentBytes: 64 << 20, RecordIndex: RecordIndexOff,
	ThresholdRecords: 8, ThresholdBytes: 9,
	DeliveryLimit: 5, DeadLetterMode: DeadLetterPark, DeadLetter: "d",
}

const goldenSettingsHex = oldSettingsHex + `
	05 00 00 00             // 5 attempts
	02                      // park
	01 00 64                // "d"
`

// oldSettingsHex are the settings in the versions before dead letters.
const oldSettingsHex = `
	04 00 00 00             // partitions 4
	03                      // replicas 3
	01                      // storage memory
	02                      // sync os
	00 5c 26 05 00 00 00 00 // retention time 86,400,000 ms
	ff ff ff ff ff ff ff ff // retention bytes unlimited
	00 00 10 00             // max record 1 MiB
	00 00 00 04 00 00 00 00 // segment 64 MiB
	02                      // record index off
	08 00 00 00 00 00 00 00 // full at 8 records
	09 00 00 00 00 00 00 00 // full at 9 bytes
`

var goldenDestination = DestinationInfo{
	Name:        "orders",
	ID:          [16]byte{0: 0xa0, 15: 0xaf},
	Kind:        Topic,
	Version:     9,
	Settings:    goldenSettings,
	Automatic:   true,
	SlotVersion: 2,
	Slots:       []SlotRun{{0, 0}, {8192, 1}},
	Partitions: []PartitionInfo{
		{Number: 1, Leader: 2, Epoch: 3, State: PartitionActive, StartOffset: 4, NextOffset: 5, Bytes: 6, Damaged: 7, Problem: "no",
			Replicas: []ReplicaInfo{{Replica: 8, Node: 2, State: ReplicaActive}, {Replica: 9, Node: 3, State: ReplicaJoining}},
			Flags:    PartitionFull, Weight: 10, Preferred: 11, Policy: LeaderPinned},
	},
}

const goldenDestinationHex = `
	06 00 6f 72 64 65 72 73 // "orders"
	a0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 af // id
	02                      // kind topic
	09 00 00 00 00 00 00 00 // version 9
` + goldenSettingsHex + `
	01                      // automatic
	02 00 00 00             // slot version 2
	02 00 00 00             // 2 runs
	00 00 00 00 00 00       // from slot 0: partition 0
	00 20 01 00 00 00       // from slot 8192: partition 1
	01 00 00 00             // 1 partition
	01 00 00 00             // number 1
	02 00 00 00             // leader node 2
	03 00 00 00             // epoch 3
	01                      // state active
	04 00 00 00 00 00 00 00 // start offset 4
	05 00 00 00 00 00 00 00 // next offset 5
	06 00 00 00 00 00 00 00 // 6 bytes
	07 00 00 00             // 7 damaged ranges
	02 00 6e 6f             // "no"
	02 00 00 00             // 2 replicas
	08 00 00 00 00 00 00 00 // replica 8
	02 00 00 00             // on node 2
	01                      // active
	09 00 00 00 00 00 00 00 // replica 9
	03 00 00 00             // on node 3
	02                      // joining
	01                      // full
	0a                      // weight 10
	0b 00 00 00             // node 11 preferred
	02                      // pinned
`

var goldenMessages = []goldenMessage{
	{"HELLO request", OpHello, false,
		&HelloRequest{MinVersion: 1, MaxVersion: 2, Features: 3, ClientName: "app", ClusterID: "c1"}, `
		01 00 02 00             // versions 1 to 2
		03 00 00 00 00 00 00 00 // features
		03 00 61 70 70          // "app"
		02 00 63 31             // "c1"
	`},
	{"HELLO request of a forwarded session", OpHello, false,
		&ForwardRequest{
			HelloRequest: HelloRequest{MinVersion: 1, MaxVersion: 2, Features: 3, ClientName: "app", ClusterID: "c1"},
			Node:         4, Hops: 2, ClientAddress: "h:1",
		}, `
		01 00 02 00             // versions 1 to 2
		03 00 00 00 00 00 00 00 // features
		03 00 61 70 70          // "app"
		02 00 63 31             // "c1"
		04 00 00 00             // node 4
		02                      // it is the second that forwards
		03 00 68 3a 31          // "h:1"
	`},
	{"HELLO response", OpHello, true,
		&HelloResponse{
			Version: 1, Features: 2, ClusterID: "c1", NodeID: 7, ServerVersion: "v0",
			MaxFrameBytes: MaxFrameBytes, MaxRecordBytes: DefaultMaxRecordBytes, MaxInFlightRequests: 1024,
			MaxInFlightBytes: 32 << 20, IdleTimeoutMs: 60_000,
			Opcodes: []OpcodeRange{{OpHello, 1, 1}, {OpProduce, 1, 2}},
		}, `
		01 00                   // version 1
		02 00 00 00 00 00 00 00 // features
		02 00 63 31             // "c1"
		07 00 00 00             // node 7
		02 00 76 30             // "v0"
		00 00 81 00             // max frame 8 MiB + 64 KiB
		00 00 10 00             // max record 1 MiB
		00 04 00 00             // 1,024 requests in flight
		00 00 00 02             // 32 MiB in flight
		60 ea 00 00             // idle timeout 60,000 ms
		02 00 00 00             // 2 opcodes
		01 01 00 01 00          // HELLO 1 to 1
		09 01 00 02 00          // PRODUCE 1 to 2
	`},
	{"PING request", OpPing, false, &PingRequest{}, ``},
	{"PING response", OpPing, true, &PingResponse{}, ``},
	{"METADATA request", OpMetadata, false, &MetadataRequest{Scope: MetadataNamed, Names: []string{"a", "b/c"}}, `
		01             // named
		00 00          // from the first
		02 00 00 00    // 2 names
		01 00 61       // "a"
		03 00 62 2f 63 // "b/c"
	`},
	{"METADATA request for the nodes", OpMetadata, false, &MetadataRequest{}, `00 00 00 00 00 00 00`},
	{"METADATA request for a later page of everything", OpMetadata, false, &MetadataRequest{Scope: MetadataAll, After: "q"}, `
		02          // all
		01 00 71    // after "q"
		00 00 00 00 // no names
	`},
	{"METADATA response", OpMetadata, true,
		&MetadataResponse{
			Version:      5,
			Nodes:        []Node{{ID: 1, Address: "h:1", Rack: "r", Role: RoleGateway, State: NodeDraining, Alive: true, Level: 2}},
			Destinations: []DestinationInfo{goldenDestination},
			Aliases:      []Alias{{Name: "a", Destination: "q", Partitions: []uint32{2}}},
			Next:         "q",
		}, `
		05 00 00 00 00 00 00 00 // version 5
		01 00 00 00             // 1 node
		01 00 00 00             // node 1
		03 00 68 3a 31          // "h:1"
		01 00 72                // rack "r"
		01                      // gateway
		01                      // draining
		01                      // alive
		02 00                   // level 2
		01 00 00 00             // 1 destination
	` + goldenDestinationHex + `
		01 00 00 00             // 1 alias
		01 00 61                // "a"
		01 00 71                // of "q"
		01 00 00 00             // 1 partition
		02 00 00 00             // number 2
		01 00 71                // the next page is after "q"
	`},
	{"CREATE request", OpCreate, false, &CreateRequest{Name: "q", Kind: Queue, Settings: goldenSettings}, `
		01 00 71 // "q"
		01       // kind queue
	` + goldenSettingsHex},
	{"CREATE response", OpCreate, true, &goldenDestination, goldenDestinationHex},
	{"ALTER request", OpAlter, false,
		&AlterRequest{Name: "q", Kind: Queue, Mask: MaskRetentionTime | MaskRecordIndex, Settings: goldenSettings}, `
		01 00 71    // "q"
		01          // kind queue
		10 01 00 00 // mask: retention time, record index
	` + goldenSettingsHex},
	{"ALTER response", OpAlter, true, &goldenDestination, goldenDestinationHex},
	{"DELETE request", OpDelete, false, &DeleteRequest{Name: "q", Kind: Topic, ID: [16]byte{0: 0xa0, 15: 0xaf}}, `
		01 00 71 // "q"
		02       // kind topic
		a0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 af // destination ID
	`},
	{"DELETE response", OpDelete, true, &DeleteResponse{}, ``},
	{"INIT_PRODUCER request", OpInitProducer, false, &InitProducerRequest{Name: "p", Destination: "q", Partitions: []uint32{3, 5}, Holder: 0x0102030405060708, Renews: true, PatienceMs: 5000}, `
		01 00 70                // "p"
		01 00 71                // in "q"
		02 00 00 00 03 00 00 00 05 00 00 00 // partitions 3 and 5
		08 07 06 05 04 03 02 01 // holder
		01                      // renews
		88 13 00 00             // for at most 5 s
	`},
	{"INIT_PRODUCER response", OpInitProducer, true, &InitProducerResponse{ProducerID: 0x0102030405060708, Epoch: 9}, `
		08 07 06 05 04 03 02 01 // producer ID
		09 00                   // epoch 9
	`},
	{"OPEN_PARTITION request", OpOpenPartition, false, &OpenPartitionRequest{Destination: "q", Partition: 3}, `
		01 00 71    // "q"
		03 00 00 00 // partition 3
	`},
	{"OPEN_PARTITION response", OpOpenPartition, true,
		&OpenPartitionResponse{
			Handle: 1, DestinationID: [16]byte{0: 0xa0, 15: 0xaf}, Epoch: 2, StartOffset: 3, NextOffset: 4,
			SlotVersion: 5, RecordIndex: true, MaxRecordBytes: 6, Incarnation: 7,
		}, `
		01 00 00 00             // handle 1
		a0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 af // destination ID
		02 00 00 00             // epoch 2
		03 00 00 00 00 00 00 00 // start offset 3
		04 00 00 00 00 00 00 00 // next offset 4
		05 00 00 00             // slot version 5
		01                      // record index
		06 00 00 00             // max record 6 bytes
		07 00 00 00             // incarnation 7
	`},
	{"PRODUCE request", OpProduce, false,
		&ProduceRequest{
			Handle: 1, Acks: AcksQuorum, Keyed: true, Slot: 0x1234, SlotVersion: 5,
			Index: []byte{0xaa, 0xab}, Batch: []byte{0xba, 0xbb, 0xbc},
		}, `
		01 00 00 00 // handle 1
		02          // acks quorum
		01          // keyed
		34 12       // slot
		05 00 00 00 // slot version 5
		02 00 00 00 // index of 2 bytes
		03 00 00 00 // batch of 3 bytes
		aa ab       // index
		ba bb bc    // batch
	`},
	{"PRODUCE response", OpProduce, true,
		&Receipt{Handle: 1, BaseOffset: 2, Epoch: 3, AppendTimeMs: 4, Replicas: 5, Synced: true, Duplicate: true}, `
		01 00 00 00             // handle 1
		02 00 00 00 00 00 00 00 // base offset 2
		03 00 00 00             // epoch 3
		04 00 00 00 00 00 00 00 // append time 4 ms
		05                      // 5 replicas
		01                      // synced
		01                      // duplicate
	`},
	{"LIST_OFFSETS request", OpListOffsets, false, &ListOffsetsRequest{Handle: 1, Kind: OffsetAtTime, TimeMs: -2}, `
		01 00 00 00             // handle 1
		02                      // by time
		fe ff ff ff ff ff ff ff // 2 ms before 1970
	`},
	{"LIST_OFFSETS response", OpListOffsets, true, &ListOffsetsResponse{Offset: 1, Epoch: 2}, `
		01 00 00 00 00 00 00 00 // offset 1
		02 00 00 00             // epoch 2
	`},
	{"LINK_OPEN request", OpLinkOpen, false, &LinkOpenRequest{Handle: 1, Offset: 2, Credit: 3, Incarnation: 4}, `
		01 00 00 00             // handle 1
		02 00 00 00 00 00 00 00 // offset 2
		03 00 00 00             // credit 3 bytes
		04 00 00 00             // incarnation 4
	`},
	{"LINK_OPEN response", OpLinkOpen, true, &LinkOpenResponse{Link: 1, StartOffset: 2, NextOffset: 3}, `
		01 00 00 00             // link 1
		02 00 00 00 00 00 00 00 // start offset 2
		03 00 00 00 00 00 00 00 // next offset 3
	`},
	{"LINK_CREDIT", OpLinkCredit, false, &LinkCredit{Credit: 1}, `01 00 00 00 // 1 byte`},
	{"LINK_CLOSE", OpLinkClose, false, &LinkClose{}, ``},
	{"DELIVER", OpDeliver, true, &Deliver{NextOffset: 1, Stream: []byte{0xaa, 0xbb}}, `
		01 00 00 00 00 00 00 00 // next offset 1
		aa bb                   // stream
	`},
	{"LINK_CLOSED", OpLinkClosed, true, &LinkClosed{Code: CodeCorrupt, Detail: "x", Next: 9}, `
		07 00                   // code 7 CORRUPT
		01 00 78                // "x"
		09 00 00 00 00 00 00 00 // reading can go on at offset 9
	`},
	{"EVENT", OpEvent, true, &Event{Kind: EventTopologyChanged, Version: 2, Destination: "q", Detail: "d"}, `
		01                      // topology changed
		02 00 00 00 00 00 00 00 // version 2
		01 00 71                // "q"
		01 00 64                // "d"
	`},
	{"REPORT_DAMAGE", OpReportDamage, false, &ReportDamage{Handle: 1, Offset: 2}, `
		01 00 00 00             // handle 1
		02 00 00 00 00 00 00 00 // offset 2
	`},
	{"JOIN", OpJoin, false, &JoinRequest{
		ClusterID: [16]byte{15: 1}, Node: 2, Store: [16]byte{15: 3}, Address: "a", PeerAddress: "b", HTTP: "c", Rack: "d", Role: "e", MinLevel: 1, MaxLevel: 2, MinPeer: 3, MaxPeer: 4,
	}, `
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 // cluster
		02 00 00 00             // node 2
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03 // data directory
		01 00 61                // "a"
		01 00 62                // "b"
		01 00 63                // "c"
		01 00 64                // "d"
		01 00 65                // "e"
		01 00 02 00             // levels 1 to 2
		03 00 04 00             // versions 3 to 4 of the peer protocol
	`},
	{"JOIN response", OpJoin, true, &JoinResponse{
		ClusterID: [16]byte{15: 1}, Node: 2, MetaReplica: 3, Members: []JoinMember{{Node: 1, Store: [16]byte{15: 4}, MetaReplica: 1, PeerAddress: "a"}},
	}, `
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 // cluster
		02 00 00 00             // node 2
		03 00 00 00 00 00 00 00 // its replica of the metadata
		01 00 00 00             // one other member
		01 00 00 00             // node 1
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 04 // its data directory
		01 00 00 00 00 00 00 00 // replica 1
		01 00 61                // "a"
	`},
	{"NODE_ADMIN", OpNodeAdmin, false, &NodeAdminRequest{Node: 3, Action: NodeDecommission}, `
		03 00 00 00             // node 3
		02                      // decommission
	`},
	{"ALIAS", OpAlias, false, &AliasRequest{Op: AliasAlter, Alias: Alias{Name: "a", Destination: "q", Partitions: []uint32{2}}}, `
		01          // alter
		01 00 61    // "a"
		01 00 71    // stands for "q"
		01 00 00 00 // 1 partition
		02 00 00 00 // number 2
	`},
	{"ALIAS response", OpAlias, true, &Empty{}, ``},
	{"CLUSTER_STATUS", OpClusterStatus, false, &ClusterStatusRequest{}, ``},
	{"CLUSTER_STATUS response", OpClusterStatus, true, &ClusterStatus{Controller: 1, Level: 2, Voters: []uint32{3}, Nodes: []NodeStatus{
		{Node: 3, Answered: true, Version: "v", UptimeMs: 4, StoredBytes: 5, FreeBytes: 6, TotalBytes: 7, KeptBytes: 8, LacksSpace: true, PeerAddress: "p", HTTP: "h"},
	}}, `
		01 00 00 00             // controller 1
		02 00                   // level 2
		01 00 00 00             // one votes
		03 00 00 00             // node 3
		01 00 00 00             // one node
		03 00 00 00             // node 3
		01                      // answered
		01 00 76                // "v"
		04 00 00 00 00 00 00 00 // up for 4 ms
		05 00 00 00 00 00 00 00 // 5 bytes stored
		06 00 00 00 00 00 00 00 // 6 bytes free
		07 00 00 00 00 00 00 00 // of 7
		08 00 00 00 00 00 00 00 // 8 of them are kept free
		01                      // it lacks space
		01 00 70                // "p"
		01 00 68                // "h"
	`},
	{"PARTITION_RECOVER", OpPartRecover, false, &PartitionRecoverRequest{Destination: "q", Partition: 1, Node: 2, Accept: true}, `
		01 00 71                // "q"
		01 00 00 00             // partition 1
		02 00 00 00             // node 2
		01                      // the loss is accepted
	`},
	{"PARTITION_RECOVER response", OpPartRecover, true, &PartitionRecovery{
		Node: 1, Next: 2, HeardNode: 3, HeardEpoch: 4, HeardNext: 5,
		Replicas: []RemainingReplica{{Replica: 6, Node: 7, Reached: true, Votes: true, Term: 8, Index: 9, Next: 10}},
	}, `
		01 00 00 00             // node 1 goes on
		02 00 00 00 00 00 00 00 // from offset 2
		03 00 00 00             // node 3 led
		04 00 00 00             // in epoch 4
		05 00 00 00 00 00 00 00 // up to offset 5
		01 00 00 00             // one replica
		06 00 00 00 00 00 00 00 // replica 6
		07 00 00 00             // on node 7
		01 00 01                // reached, certain, a voter
		08 00 00 00 00 00 00 00 // term 8
		09 00 00 00 00 00 00 00 // index 9
		0a 00 00 00 00 00 00 00 // offset 10
	`},
	{"PARTITION_ADMIN", OpPartAdmin, false, &PartitionAdminRequest{
		Destination: "q", Partition: 1, Action: PartitionPlace, From: 2, To: 3,
		Placement: Placement{Mask: MaskPreferred | MaskSend, Preferred: 4, Policy: LeaderFailback, Weight: 5, SendDisabled: true},
	}, `
		01 00 71                // "q"
		01 00 00 00             // partition 1
		02                      // place
		02 00 00 00             // from node 2
		03 00 00 00             // to node 3
		09                      // preferred leader and send
		04 00 00 00             // node 4
		01                      // failback
		05                      // weight 5
		01                      // closed
	`},
	{"GROUP_ATTACH request", OpGroupAttach, false, &AttachRequest{
		Handle: 1, Group: "g", Session: [16]byte{15: 2}, Predecessor: [16]byte{15: 3}, Attempt: 4, Term: 5, Generation: 6, Counter: 7,
		Flags: AttachReleaseOnDisconnect | AttachStandby, Capacity: 8, Refill: 9, Bytes: 10, Working: 16, Name: "n",
		Claims: []Outcome{{Offset: 11, Count: 12, Epoch: 13}, {Offset: 23, Count: 1, Epoch: 14, Kind: OutcomeNack, DelayMs: 15}},
	}, `
		01 00 00 00             // handle 1
		01 00 67                // "g"
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 // session
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03 // predecessor
		04 00 00 00 00 00 00 00 // attempt 4
		05 00 00 00 00 00 00 00 // term 5
		06 00 00 00             // generation 6
		07 00 00 00             // counter 7
		03                      // release on disconnect, standby
		08 00 00 00             // capacity 8
		09 00 00 00             // refill at 9
		0a 00 00 00             // 10 bytes
		10 00 00 00             // works on 16 at once
		01 00 6e                // "n"
		02 00 00 00             // two claims
		0b 00 00 00 00 00 00 00 // offset 11
		0c 00 00 00             // 12 records
		0d 00 00 00 00 00 00 00 // epoch 13
		00 00 00 00             // held
		00 00 00 00             // no delay
		17 00 00 00 00 00 00 00 // offset 23
		01 00 00 00             // one record
		0e 00 00 00 00 00 00 00 // epoch 14
		02 00 00 00             // nack
		0f 00 00 00             // 15 ms
	`},
	{"GROUP_ATTACH response", OpGroupAttach, true, &AttachResponse{
		Link: 1, Term: 2, Group: 3, Mode: ModeSerial, Scope: ScopePublisher, Order: OrderReplay, Window: 4, SessionMs: 5, AckWaitMs: 6,
		Refused: []OutcomeAnswer{{Offset: 7, Count: 8, Epoch: 9, Code: CodeStaleEpoch}},
	}, `
		01 00 00 00             // link 1
		02 00 00 00 00 00 00 00 // term 2
		03 00 00 00 00 00 00 00 // group 3
		02 02 02 00             // serial, publisher, replay
		04 00 00 00             // window 4
		05 00 00 00             // session timeout 5 ms
		06 00 00 00             // ack wait 6 ms
		01 00 00 00             // one claim refused
		07 00 00 00 00 00 00 00 // offset 7
		08 00 00 00             // 8 records
		09 00 00 00 00 00 00 00 // epoch 9
		2e 00 00 00             // code 46 STALE_EPOCH
	`},
	{"GROUP_OUTCOME", OpGroupOutcome, false, &GroupOutcomes{Outcomes: []Outcome{
		{Offset: 1, Count: 2, Epoch: 3, Kind: OutcomeAck}, {Offset: 3, Count: 1, Epoch: 4, Kind: OutcomeReject, Text: "bad"},
	}}, `
		02 00 00 00             // two ranges
		01 00 00 00 00 00 00 00 // offset 1
		02 00 00 00             // 2 records
		03 00 00 00 00 00 00 00 // epoch 3
		01 00 00 00             // ack
		00 00 00 00             // no delay
		03 00 00 00 00 00 00 00 // offset 3
		01 00 00 00             // one record
		04 00 00 00 00 00 00 00 // epoch 4
		04 00 00 00             // reject
		00 00 00 00             // no delay
		01 00                   // one text
		01 00 00 00             // of the second range
		03 00 62 61 64          // "bad"
	`},
	{"GROUP_ANSWER", OpGroupAnswer, true, &GroupAnswers{Answers: []OutcomeAnswer{{Offset: 1, Count: 2, Epoch: 3, Code: CodeOK}}}, `
		01 00 00 00             // one range
		01 00 00 00 00 00 00 00 // offset 1
		02 00 00 00             // 2 records
		03 00 00 00 00 00 00 00 // epoch 3
		00 00 00 00             // OK
	`},
	{"GROUP_DELIVER", OpGroupDeliver, true, &GroupDeliver{
		Kind: DeliverBatches, Next: 1, Grants: []Grant{{Offset: 2, Count: 3, Epoch: 4, Deliveries: 5, Attempts: 6, Flags: GrantRedelivered | GrantAtLeast}},
		Bytes: []byte{0xaa, 0xbb},
	}, `
		01 00                   // whole batches
		01 00                   // one grant
		01 00 00 00 00 00 00 00 // next offset 1
		02 00 00 00 00 00 00 00 // offset 2
		03 00 00 00             // 3 records
		04 00 00 00 00 00 00 00 // epoch 4
		05 00                   // fifth delivery
		06 00                   // 6 attempts
		03 00 00 00             // redelivered, at least
		aa bb                   // batches
	`},
	{"GROUP_CAPACITY", OpGroupCapacity, false, &GroupCapacity{Records: 1, Refill: 2, Bytes: 3, Working: 4}, `
		01 00 00 00             // 1 record
		02 00 00 00             // refill at 2
		03 00 00 00             // 3 bytes
		04 00 00 00             // works on 4 at once
	`},
	{"GROUP_REVOKE", OpGroupRevoke, true, &GroupRevoke{Revokes: []Revoke{{Offset: 1, Count: 2, Epoch: 3, Reason: ReasonSeek, GraceMs: 4}}}, `
		01 00 00 00             // one range
		01 00 00 00 00 00 00 00 // offset 1
		02 00 00 00             // 2 records
		03 00 00 00 00 00 00 00 // epoch 3
		03 00 00 00             // seek
		04 00 00 00             // 4 ms
	`},
	{"GROUP_LOST", OpGroupLost, true, &GroupLost{Lost: []Lost{{Offset: 1, Count: 2, Epoch: 3, Reason: ReasonExpired}}}, `
		01 00 00 00             // one range
		01 00 00 00 00 00 00 00 // offset 1
		02 00 00 00             // 2 records
		03 00 00 00 00 00 00 00 // epoch 3
		09 00 00 00             // expired
	`},
	{"GROUP_HEARTBEAT", OpGroupHeartbeat, false, &GroupHeartbeat{Number: 1}, `01 00 00 00 00 00 00 00`},
	{"GROUP_LEAVE", OpGroupLeave, false, &GroupLeave{Drain: true}, `01 // drain`},
	{"GROUP_ADMIN request", OpGroupAdmin, false, &GroupAdminRequest{Op: GroupList, Destination: "q", Group: "g", JSON: []byte("{}")}, `
		04                      // list
		01 00 71                // "q"
		01 00 67                // "g"
		02 00 00 00 7b 7d       // {}
	`},
	{"GROUP_ORDER request", OpGroupOrder, false, &GroupOrderRequest{Handle: 1, Op: OrderSeek, Group: "g", JSON: []byte("{}")}, `
		01 00 00 00             // handle 1
		03                      // seek
		01 00 67                // "g"
		02 00 00 00 7b 7d       // {}
	`},
	{"GROUP_ORDER response", OpGroupOrder, true, &GroupJSON{JSON: []byte("{}")}, `02 00 00 00 7b 7d // {}`},
	{"GROUP_BIND request", OpGroupBind, false, &BindRequest{
		Handle: 1, Group: "g", Session: [16]byte{15: 2}, Predecessor: [16]byte{15: 3}, Name: "n", Node: 4, Flags: AttachStandby, Generation: 5, Counter: 6, Partitions: []uint32{7},
	}, `
		01 00 00 00             // handle 1
		01 00 67                // "g"
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 // session
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03 // predecessor
		01 00 6e                // "n"
		04 00 00 00             // node 4
		02                      // standby
		05 00 00 00             // generation 5
		06 00 00 00             // counter 6
		01 00 00 00             // one partition
		07 00 00 00             // partition 7
	`},
	{"GROUP_BIND response", OpGroupBind, true, &BindResponse{Link: 1, Generation: 2, Counter: 3, Binding: BindingCover, SessionMs: 6000, Partitions: []uint32{4}, Uncovered: []uint32{5}}, `
		01 00 00 00             // link 1
		02 00 00 00             // generation 2
		03 00 00 00             // counter 3
		01                      // cover
		70 17 00 00             // 6,000 ms
		01 00 00 00             // one partition
		04 00 00 00             // partition 4
		01 00 00 00             // one without a consumer
		05 00 00 00             // partition 5
	`},
	{"GROUP_BINDING", OpGroupBinding, true, &GroupBinding{Generation: 2, Counter: 3, Partitions: []uint32{4}, Uncovered: []uint32{5}}, `
		02 00 00 00             // generation 2
		03 00 00 00             // counter 3
		01 00 00 00             // one partition
		04 00 00 00             // partition 4
		01 00 00 00             // one without a consumer
		05 00 00 00             // partition 5
	`},
	{"TEMPORARY_OPEN request", OpTempOpen, false, &TemporaryOpenRequest{Name: "n", Token: [16]byte{15: 2}, GraceMs: 3, Next: 4}, `
		01 00 6e                // "n"
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 // token
		03 00 00 00             // grace 3 ms
		04 00 00 00 00 00 00 00 // next 4
	`},
	{"TEMPORARY_OPEN response", OpTempOpen, true, &TemporaryOpenResponse{Link: 1, Name: "n", GraceMs: 2}, `
		01 00 00 00             // link 1
		01 00 6e                // "n"
		02 00 00 00             // grace 2 ms
	`},
	{"TEMPORARY_DELIVER", OpTempDeliver, true, &TemporaryDeliver{Base: 1, Batch: []byte{2, 3}}, `
		01 00 00 00 00 00 00 00 // base 1
		02 03                   // batch
	`},
	{"TEMPORARY_TAKEN", OpTempTaken, false, &TemporaryTaken{Next: 1}, `01 00 00 00 00 00 00 00`},
	{"TEMPORARY_SEND request", OpTempSend, false, &TemporarySendRequest{Name: "n", Batch: []byte{2, 3}}, `
		01 00 6e                // "n"
		02 03                   // batch
	`},
	{"TEMPORARY_SEND response", OpTempSend, true, &TemporarySendResponse{Base: 1}, `01 00 00 00 00 00 00 00`},
}

// What clients of the version before send, and understand.
var oldMessages = []struct {
	name    string
	version uint16
	message Message // as it is read
	hex     string
}{
	{"METADATA response 4", 4,
		&MetadataResponse{Version: 5, Destinations: []DestinationInfo{{Name: "q", Kind: Queue, Settings: withoutLetters(goldenSettings)}}}, `
		05 00 00 00 00 00 00 00 // version 5
		00 00 00 00             // no nodes
		01 00 00 00             // 1 destination
		01 00 71                // "q"
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 // id
		01                      // queue
		00 00 00 00 00 00 00 00 // version 0
	` + oldSettingsHex + `
		00                      // not automatic
		00 00 00 00             // slot version 0
		00 00 00 00             // no runs
		00 00 00 00             // no partitions
		00 00                   // the last page
	`},
	{"CREATE request 3", 3, &CreateRequest{Name: "q", Kind: Queue, Settings: withoutLetters(goldenSettings)}, `
		01 00 71 // "q"
		01       // kind queue
	` + oldSettingsHex},
	{"ALTER request 3", 3, &AlterRequest{Name: "q", Kind: Queue, Mask: 1, Settings: withoutLetters(goldenSettings)}, `
		01 00 71    // "q"
		01          // kind queue
		01 00 00 00 // mask: partitions
	` + oldSettingsHex},
}

func withoutLetters(s Settings) Settings {
	s.DeliveryLimit, s.DeadLetterMode, s.DeadLetter = 0, 0, ""
	return s
}

// docs/upgrade.md: what the build before sends is understood, and answered as it knows it.
func TestMessagesOfTheVersionBeforeAreUnderstood(t *testing.T) {
	for _, test := range oldMessages {
		t.Run(test.name, func(t *testing.T) {
			want := unhex(t, test.hex)
			require.Equal(t, want, appendMessage(nil, test.message, test.version))
			got := fresh(test.message)
			require.NoError(t, ParseMessage(got, want, test.version))
			require.Equal(t, test.message, got)
			for n := range want {
				require.ErrorIs(t, ParseMessage(fresh(test.message), want[:n], test.version), CodeMalformed, "cut to %d bytes", n)
			}
			require.ErrorIs(t, fresh(test.message).Parse(want), CodeMalformed, "it is not one of the newest version")
		})
	}
	settings := goldenDestination
	settings.Settings = withoutLetters(settings.Settings)
	require.Equal(t, appendMessage(nil, &settings, 3), appendMessage(nil, &goldenDestination, 3), "an older version leaves out what it does not have")
	require.Equal(t, []OpcodeRange{{OpMetadata, 4, 5}, {OpCreate, 3, 4}, {OpAlter, 3, 4}}, SupportedOpcodes()[2:5])
}

// fresh is a new message of the same type.
func fresh(m Message) Message { return reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message) }

func TestMessagesGolden(t *testing.T) {
	for _, test := range goldenMessages {
		t.Run(test.name, func(t *testing.T) {
			want := unhex(t, test.hex)
			require.Equal(t, want, test.message.Append([]byte{}))
			require.Equal(t, append([]byte("before"), want...), test.message.Append([]byte("before")))

			got := fresh(test.message)
			require.NoError(t, got.Parse(want))
			require.Equal(t, test.message, got)
		})
	}
}

func TestEveryOpcodeHasAGoldenMessage(t *testing.T) {
	covered := map[Opcode]bool{}
	for _, test := range goldenMessages {
		covered[test.opcode] = true
	}
	for _, r := range SupportedOpcodes() {
		require.True(t, covered[r.Opcode], r.Opcode.String())
	}
}

func TestMessagesThatAreReusedForgetWhatTheyHeld(t *testing.T) {
	for _, test := range goldenMessages {
		zero := fresh(test.message)
		zeroBytes := zero.Append(nil)
		used := fresh(test.message)
		require.NoError(t, used.Parse(unhex(t, test.hex)), test.name)
		require.NoError(t, used.Parse(zeroBytes), test.name)
		require.Equal(t, zeroBytes, used.Append(nil), test.name)
	}
}

// Row 8 of the bad-input catalogue: content and length disagree.
func TestMessagesRefuseOtherLengths(t *testing.T) {
	for _, test := range goldenMessages {
		t.Run(test.name, func(t *testing.T) {
			src := unhex(t, test.hex)
			if test.opcode == OpDeliver {
				require.ErrorIs(t, fresh(test.message).Parse(src[:DeliverPrefixSize-1]), CodeMalformed)
				return // what follows the prefix is the stream, of any length
			}
			if test.opcode == OpGroupDeliver {
				for n := range GroupDeliverPrefixSize + GrantSize {
					require.ErrorIs(t, fresh(test.message).Parse(src[:n]), CodeMalformed, "cut to %d bytes", n)
				}
				return // so is what follows the grants
			}
			if batch := 2; test.opcode == OpTempDeliver || test.name == "TEMPORARY_SEND request" {
				for n := range len(src) - batch {
					require.ErrorIs(t, fresh(test.message).Parse(src[:n]), CodeMalformed, "cut to %d bytes", n)
				}
				return // and the batch
			}
			for n := range len(src) {
				require.ErrorIs(t, fresh(test.message).Parse(src[:n]), CodeMalformed, "cut to %d bytes", n)
			}
			require.ErrorIs(t, fresh(test.message).Parse(append(src, 0)), CodeMalformed)
		})
	}
}

func TestCountsAreBoundedByTheBytesThatFollow(t *testing.T) {
	huge := []byte{byte(MetadataNamed), 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0}
	allocated := testing.AllocsPerRun(10, func() {
		var m MetadataRequest
		require.ErrorIs(t, m.Parse(huge), CodeMalformed)
	})
	require.Less(t, allocated, 50.0)

	names := make([]byte, 3+4+2*(MaxMetadataNames+1))
	names[0] = byte(MetadataNamed)
	binary.LittleEndian.PutUint32(names[3:], MaxMetadataNames+1)
	require.ErrorIs(t, new(MetadataRequest).Parse(names), CodeTooMany)
	binary.LittleEndian.PutUint32(names[3:], MaxMetadataNames)
	require.NoError(t, new(MetadataRequest).Parse(names[:len(names)-2]))
	for _, bad := range [][]byte{
		{3, 0, 0, 0, 0, 0, 0},                              // a scope of a newer version
		{byte(MetadataNodes), 0, 0, 1, 0, 0, 0, 1, 0, 'a'}, // names that are not asked for
		{byte(MetadataAll), 0, 0, 1, 0, 0, 0, 1, 0, 'a'},
	} {
		require.ErrorIs(t, new(MetadataRequest).Parse(bad), CodeMalformed)
	}

	destination := goldenDestination
	destination.Slots, destination.Partitions = nil, nil
	src := destination.Append(nil)
	for _, at := range []int{len(src) - 8, len(src) - 4} {
		bad := append([]byte(nil), src...)
		copy(bad[at:], huge[:4])
		require.ErrorIs(t, fresh(&destination).Parse(bad), CodeMalformed)
	}
}

func TestFieldsThatCannotHaveTheirValueAreRefused(t *testing.T) {
	receipt := (&Receipt{}).Append(nil)
	receipt[ReceiptSize-1] = 2
	require.ErrorIs(t, new(Receipt).Parse(receipt), CodeMalformed, "a boolean that is 2")

	producer := (&InitProducerRequest{}).Append(nil)
	producer[4] = 1
	require.ErrorIs(t, new(InitProducerRequest).Parse(producer), CodeMalformed, "partitions that do not follow")

	for name, runs := range map[string][]SlotRun{
		"slots that do not start at 0": {{1, 0}},
		"slots that repeat":            {{0, 0}, {0, 1}},
		"slots that descend":           {{0, 0}, {9, 1}, {8, 2}},
		"a slot above the last":        {{0, 0}, {SlotCount, 1}},
	} {
		destination := goldenDestination
		destination.Slots = runs
		require.ErrorIs(t, new(DestinationInfo).Parse(destination.Append(nil)), CodeMalformed, name)
	}

	produce := ProduceRequest{Index: []byte("index"), Batch: []byte("batch")}
	src := produce.Append(nil)
	copy(src[12:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	require.ErrorIs(t, new(ProduceRequest).Parse(src), CodeMalformed, "lengths whose sum overflows 32 bits")
}

// Each field with few values, at its last one and behind it.
func TestTheLastValueOfAFieldIsTakenAndNoneBehindIt(t *testing.T) {
	for _, c := range []struct {
		name      string
		good, bad Message
	}{
		{"alias", &AliasRequest{Op: AliasRemove}, &AliasRequest{Op: AliasRemove + 1}},
		{"node action", &NodeAdminRequest{Action: NodeDecommission}, &NodeAdminRequest{Action: NodeDecommission + 1}},
		{"partition action", &PartitionAdminRequest{Action: PartitionPlace}, &PartitionAdminRequest{Action: PartitionPlace + 1}},
		{"placement", &PartitionAdminRequest{Placement: Placement{Mask: MaskPlacement}}, &PartitionAdminRequest{Placement: Placement{Mask: MaskPlacement + 1}}},
		{"policy", &PartitionAdminRequest{Placement: Placement{Policy: LeaderPinned}}, &PartitionAdminRequest{Placement: Placement{Policy: LeaderPinned + 1}}},
		{"outcome", &GroupOutcomes{Outcomes: []Outcome{{Count: 1, Kind: OutcomeLostSeen}}}, &GroupOutcomes{Outcomes: []Outcome{{Count: 1, Kind: OutcomeLostSeen + 1}}}},
		{"range", &GroupLost{Lost: []Lost{{Offset: 1<<64 - 2, Count: 1}}}, &GroupLost{Lost: []Lost{{Offset: 1<<64 - 1, Count: 2}}}},
		{"grants", &GroupDeliver{Grants: []Grant{{Offset: 1, Count: 1}}}, &GroupDeliver{Grants: []Grant{{Offset: 1}}}},
	} {
		require.NoError(t, fresh(c.good).Parse(c.good.Append(nil)), c.name)
		require.ErrorIs(t, fresh(c.bad).Parse(c.bad.Append(nil)), CodeMalformed, c.name)
	}
	for name, m := range map[string]Message{
		"outcome": &GroupOutcomes{Outcomes: []Outcome{{Count: 1}}}, "answer": &GroupAnswers{Answers: []OutcomeAnswer{{Count: 1}}},
		"revoke": &GroupRevoke{Revokes: []Revoke{{Count: 1}}}, "lost": &GroupLost{Lost: []Lost{{Count: 1}}}, "grant": &GroupDeliver{Grants: []Grant{{Count: 1}}},
	} {
		at := map[string]int{"outcome": 4 + 23, "answer": 4 + 23, "revoke": 4 + 21, "lost": 4 + 21, "grant": GroupDeliverPrefixSize + 25}[name]
		src := m.Append(nil)
		require.NoError(t, fresh(m).Parse(src), name)
		src[at] = 1
		require.ErrorIs(t, fresh(m).Parse(src), CodeMalformed, "a reserved byte of %s", name)
	}
	text := func(n int) []byte {
		src := (&GroupOutcomes{Outcomes: []Outcome{{Count: 1, Text: "x"}}}).Append(nil)
		src = append(src[:len(src)-3], byte(n), byte(n>>8))
		return append(src, make([]byte, n)...)
	}
	require.NoError(t, new(GroupOutcomes).Parse(text(MaxDetailBytes)))
	require.ErrorIs(t, new(GroupOutcomes).Parse(text(MaxDetailBytes+1)), CodeMalformed)
	require.ErrorIs(t, new(GroupOutcomes).Parse(text(0)), CodeMalformed, "a text of nothing")
}

func TestParsedSlicesAreViewsThatCannotGrow(t *testing.T) {
	m := ProduceRequest{Index: []byte("index"), Batch: []byte("batch")}
	src := m.Append(nil)
	require.Len(t, src, m.BodySize())
	var got ProduceRequest
	require.NoError(t, got.Parse(src))
	require.Same(t, &src[ProducePrefixSize], &got.Index[0])
	require.Same(t, &src[ProducePrefixSize+5], &got.Batch[0])
	require.Equal(t, 5, cap(got.Index))
	require.Equal(t, 5, cap(got.Batch))
	require.Equal(t, src[:ProducePrefixSize], m.AppendPrefix(nil))
}

func TestSizesOfFixedMessages(t *testing.T) {
	require.Len(t, (&Receipt{}).Append(nil), ReceiptSize)
	require.Len(t, (&ProduceRequest{}).Append(nil), ProducePrefixSize)
	require.Len(t, (&Deliver{}).Append(nil), DeliverPrefixSize)
	require.Len(t, (&Settings{}).append(nil, false), oldSettingsSize)
	require.Len(t, (&Settings{}).append(nil, true), settingsMinSize)
	require.Len(t, (&GroupDeliver{}).Append(nil), GroupDeliverPrefixSize)
	require.Len(t, (&GroupDeliver{Grants: []Grant{{Count: 1}}}).Append(nil), GroupDeliverPrefixSize+GrantSize)
	require.Len(t, (&GroupSettings{}).Append(nil), groupSettingsMinSize)
	require.Len(t, (&DestinationInfo{}).Append(nil), destinationInfoMinSize)
}

func TestLongStringsAreCutWhenTheyAreWritten(t *testing.T) {
	long := strings.Repeat("ü", 64<<10)
	var m OpenPartitionRequest
	require.NoError(t, m.Parse((&OpenPartitionRequest{Destination: long}).Append(nil)))
	require.Len(t, m.Destination, 65_535)

	var e ErrorBody
	require.NoError(t, e.Parse((&ErrorBody{Code: CodeInternal, Detail: "x" + long}).Append(nil)))
	require.Equal(t, "x"+strings.Repeat("ü", 511), e.Detail, "1,023 bytes: the rune that does not fit is left out")
	require.NoError(t, e.Parse((&ErrorBody{Code: CodeInternal, Detail: long}).Append(nil)))
	require.Len(t, e.Detail, MaxDetailBytes)
}

func TestSlotPartition(t *testing.T) {
	runs := []SlotRun{{0, 7}, {100, 8}, {101, 9}}
	for slot, want := range map[uint16]uint32{0: 7, 99: 7, 100: 8, 101: 9, SlotCount - 1: 9} {
		got, ok := SlotPartition(runs, slot)
		require.True(t, ok)
		require.Equal(t, want, got, "slot %d", slot)
	}
	_, ok := SlotPartition(runs, SlotCount)
	require.False(t, ok)
	_, ok = SlotPartition(nil, 0)
	require.False(t, ok)
}

func TestSettingsMergeTakesWhatTheMaskNames(t *testing.T) {
	require.Equal(t, SettingsMask(0x3fff), MaskAll)
	require.Equal(t, Settings{}, Settings{}.Merge(goldenSettings, 0))
	require.Equal(t, goldenSettings, Settings{}.Merge(goldenSettings, MaskAll))
	require.Equal(t, Settings{RetentionBytes: Unlimited}, Settings{}.Merge(goldenSettings, MaskRetentionBytes))
	// Each field has one bit.
	merged := Settings{}
	for bit := range 14 {
		next := merged.Merge(goldenSettings, 1<<bit)
		require.NotEqual(t, merged, next, "bit %d", bit)
		merged = next
	}
	require.Equal(t, goldenSettings, merged)
}

func TestNamesOfValues(t *testing.T) {
	for _, test := range []struct {
		value fmt.Stringer
		want  string
	}{
		{Queue, "queue"}, {Topic, "topic"}, {DestinationKind(0), "unknown"},
		{StorageDisk, "disk"}, {StorageMemory, "memory"}, {Storage(9), "unknown"},
		{SyncQuorumFsync, "quorum-fsync"}, {SyncInterval, "interval"}, {SyncOS, "os"}, {SyncMode(9), "unknown"},
		{RecordIndexDefault, "default"}, {RecordIndexOn, "on"}, {RecordIndexOff, "off"}, {RecordIndexMode(9), "unknown"},
		{PartitionStarting, "starting"}, {PartitionActive, "active"}, {PartitionFenced, "fenced"},
		{PartitionUnavailable, "unavailable"}, {PartitionState(9), "unknown"},
		{AcksNone, "none"}, {AcksLeader, "leader"}, {AcksQuorum, "quorum"}, {Acks(9), "unknown"},
		{EventTopologyChanged, "topology changed"}, {EventGoAway, "go away"},
		{EventDestinationUnavailable, "destination unavailable"}, {EventKind(9), "unknown"},
		{KindRecords, "records"}, {KindControl, "control"}, {KindConfiguration, "configuration"}, {KindNoOp, "no-op"}, {Kind(9), "unknown"},
		{CodecNone, "none"}, {Codec(1), "gzip"}, {CodecSnappy, "snappy"}, {Codec(3), "lz4"}, {CodecZstd, "zstd"}, {Codec(5), "unknown"},
		{ClosesNever, "no"}, {ClosesOnFrame, "frame"}, {ClosesAlways, "yes"}, {Closes(9), "unknown"},
	} {
		require.Equal(t, test.want, test.value.String())
	}
	require.True(t, AcksNone.Valid())
	require.True(t, AcksQuorum.Valid())
	require.False(t, Acks(3).Valid())
}

func TestHotMessagesAllocateNothing(t *testing.T) {
	batch, index := batchOf(t, 4<<10, 100)
	buffer := make([]byte, 0, 16<<10)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		m := ProduceRequest{Index: index, Batch: batch}
		frame := AppendHeader(buffer, Header{Length: FrameLength(m.BodySize()), Opcode: OpProduce, Version: 1})
		frame = m.Append(frame)
		h, err := ParseHeader(frame)
		if err != nil {
			t.Fatal(err)
		}
		body := frame[HeaderSize:h.TotalSize()]
		var parsed ProduceRequest
		if err := parsed.Parse(body); err != nil {
			t.Fatal(err)
		}
		var receipt Receipt
		if err := receipt.Parse((&Receipt{BaseOffset: 1}).Append(buffer)); err != nil {
			t.Fatal(err)
		}
		var deliver Deliver
		if err := deliver.Parse((&Deliver{Stream: batch}).Append(buffer)); err != nil {
			t.Fatal(err)
		}
	}))
}

// FuzzMessages parses any bytes as any message. What parses must encode to the
// bytes it came from.
func FuzzMessages(f *testing.F) {
	for i, m := range goldenMessages {
		f.Add(uint8(i), m.message.Append(nil))
	}
	f.Fuzz(func(t *testing.T, which uint8, src []byte) {
		example := goldenMessages[int(which)%len(goldenMessages)]
		m := fresh(example.message)
		if err := m.Parse(src); err != nil {
			if CodeOf(err) != CodeTooMany {
				require.ErrorIs(t, err, CodeMalformed)
			}
			return
		}
		encoded := m.Append(nil)
		switch v := m.(type) {
		case *ErrorBody:
			if v.Code == CodeUnknown || len(v.Detail) > MaxDetailBytes {
				return // the original code or text is not kept
			}
		case *Event:
			if len(v.Detail) > MaxDetailBytes {
				return
			}
		}
		require.Equal(t, len(src), len(encoded), example.name)
		require.Equal(t, string(src), string(encoded), example.name)
		again := fresh(example.message)
		require.NoError(t, again.Parse(encoded))
		require.Equal(t, m, again)
	})
}
