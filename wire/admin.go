package wire

import "encoding/binary"

// CREATE (4), ALTER (5), version 4, and DELETE (6), version 2: administration of
// destinations. Version 1 of CREATE and ALTER had no thresholds, their answers up to
// version 2 no placement, version 3, which is still understood, no dead letters; version 1 of DELETE did not say which destination of the name. CREATE and ALTER are answered with DestinationInfo,
// DELETE with an empty body, each after the change is committed.

// CreateRequest creates a destination.
//
//	name string | kind u8 | settings
type CreateRequest struct {
	Name     string
	Kind     DestinationKind
	Settings Settings
}

// Append implements Message.
func (m *CreateRequest) Append(dst []byte) []byte { return m.appendVersion(dst, settingsWithLetters) }

// appendVersion implements versioned.
func (m *CreateRequest) appendVersion(dst []byte, version uint16) []byte {
	dst = appendString(dst, m.Name)
	dst = append(dst, byte(m.Kind))
	return m.Settings.append(dst, version >= settingsWithLetters)
}

// Parse implements Message.
func (m *CreateRequest) Parse(src []byte) error { return m.parseVersion(src, settingsWithLetters) }

// parseVersion implements versioned.
func (m *CreateRequest) parseVersion(src []byte, version uint16) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Kind = DestinationKind(r.uint8())
	m.Settings.read(&r, version >= settingsWithLetters)
	return r.done("CREATE request")
}

// SettingsMask names the settings that ALTER changes, one bit for each field.
type SettingsMask uint32

// The bits of a SettingsMask.
const (
	MaskPartitions SettingsMask = 1 << iota
	MaskReplicas
	MaskStorage
	MaskSync
	MaskRetentionTime
	MaskRetentionBytes
	MaskMaxRecordBytes
	MaskSegmentBytes
	MaskRecordIndex
	MaskThresholdRecords
	MaskThresholdBytes
	MaskDeliveryLimit
	MaskDeadLetterMode
	MaskDeadLetter

	// MaskLetters has the bits of the settings about dead letters.
	MaskLetters = MaskDeliveryLimit | MaskDeadLetterMode | MaskDeadLetter

	// MaskAll has the bits of all settings.
	MaskAll SettingsMask = MaskDeadLetter<<1 - 1
)

// Merge returns s with the fields of the mask taken from changes.
func (s Settings) Merge(changes Settings, mask SettingsMask) Settings {
	if mask&MaskPartitions != 0 {
		s.Partitions = changes.Partitions
	}
	if mask&MaskReplicas != 0 {
		s.Replicas = changes.Replicas
	}
	if mask&MaskStorage != 0 {
		s.Storage = changes.Storage
	}
	if mask&MaskSync != 0 {
		s.Sync = changes.Sync
	}
	if mask&MaskRetentionTime != 0 {
		s.RetentionTimeMs = changes.RetentionTimeMs
	}
	if mask&MaskRetentionBytes != 0 {
		s.RetentionBytes = changes.RetentionBytes
	}
	if mask&MaskMaxRecordBytes != 0 {
		s.MaxRecordBytes = changes.MaxRecordBytes
	}
	if mask&MaskSegmentBytes != 0 {
		s.SegmentBytes = changes.SegmentBytes
	}
	if mask&MaskRecordIndex != 0 {
		s.RecordIndex = changes.RecordIndex
	}
	if mask&MaskThresholdRecords != 0 {
		s.ThresholdRecords = changes.ThresholdRecords
	}
	if mask&MaskThresholdBytes != 0 {
		s.ThresholdBytes = changes.ThresholdBytes
	}
	if mask&MaskDeliveryLimit != 0 {
		s.DeliveryLimit = changes.DeliveryLimit
	}
	if mask&MaskDeadLetterMode != 0 {
		s.DeadLetterMode = changes.DeadLetterMode
	}
	if mask&MaskDeadLetter != 0 {
		s.DeadLetter = changes.DeadLetter
	}
	return s
}

// AlterRequest changes settings of a destination.
//
//	name string | kind u8 | mask u32 | settings
type AlterRequest struct {
	Name     string
	Kind     DestinationKind // must be the destination's, or KIND_MISMATCH
	Mask     SettingsMask    // bits outside MaskAll are refused by the broker
	Settings Settings        // fields outside the mask are ignored
}

// Append implements Message.
func (m *AlterRequest) Append(dst []byte) []byte { return m.appendVersion(dst, settingsWithLetters) }

// appendVersion implements versioned.
func (m *AlterRequest) appendVersion(dst []byte, version uint16) []byte {
	dst = appendString(dst, m.Name)
	dst = append(dst, byte(m.Kind))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Mask))
	return m.Settings.append(dst, version >= settingsWithLetters)
}

// Parse implements Message.
func (m *AlterRequest) Parse(src []byte) error { return m.parseVersion(src, settingsWithLetters) }

// parseVersion implements versioned.
func (m *AlterRequest) parseVersion(src []byte, version uint16) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Kind = DestinationKind(r.uint8())
	m.Mask = SettingsMask(r.uint32())
	m.Settings.read(&r, version >= settingsWithLetters)
	return r.done("ALTER request")
}

// DeleteRequest removes a destination and all its records.
//
//	name string | kind u8 | id 16
type DeleteRequest struct {
	Name string
	Kind DestinationKind // must be the destination's, or KIND_MISMATCH
	ID   [16]byte        // must be the destination's, or REFUSED
}

// DeleteResponse says that the removal is committed.
type DeleteResponse = Empty

// Append implements Message.
func (m *DeleteRequest) Append(dst []byte) []byte {
	dst = appendString(dst, m.Name)
	dst = append(dst, byte(m.Kind))
	return append(dst, m.ID[:]...)
}

// Parse implements Message.
func (m *DeleteRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Name = r.string()
	m.Kind = DestinationKind(r.uint8())
	m.ID = r.uuid()
	return r.done("DELETE request")
}
