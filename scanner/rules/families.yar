// A few families by the patterns that public reports and published sources name. All are written in hex, so that this
// file does not match itself. This is a start, not protection: bring rules that are kept up to date (`scan_rules`).

rule Metasploit_Android_payload
{
    meta:
        description = "An Android program that carries Metasploit's payload, by the name of its class"
        source = "https://github.com/rapid7/metasploit-payloads (java/androidpayload, com.metasploit.stage.Payload)"
        severity = "infected"
    strings:
        $dex = { 64 65 78 0A 30 }
        $class = {
            4C 63 6F 6D 2F 6D 65 74 61 73 70 6C 6F 69 74 2F 73 74 61 67 65 2F 50 61
            79 6C 6F 61 64 3B
        }
    condition:
        $dex at 0 and $class
}

rule Mirai_bot
{
    meta:
        description = "A Mirai bot, by the command with which it asks a device for busybox"
        source = "https://github.com/jgamblin/Mirai-Source-Code (mirai/bot); US-CERT alert TA16-288A"
        severity = "infected"
    strings:
        $elf = { 7F 45 4C 46 }
        $probe = { 2F 62 69 6E 2F 62 75 73 79 62 6F 78 20 4D 49 52 41 49 }
    condition:
        $elf at 0 and $probe
}

rule WannaCry_kill_switch
{
    meta:
        description = "WannaCry, by the host it asks for before it spreads"
        source = "US-CERT alert TA17-132A"
        severity = "infected"
    strings:
        $exe = { 4D 5A }
        $host = {
            69 75 71 65 72 66 73 6F 64 70 39 69 66 6A 61 70 6F 73 64 66 6A 68 67 6F
            73 75 72 69 6A 66 61 65 77 72 77 65 72 67 77 65 61 2E 63 6F 6D
        }
    condition:
        $exe at 0 and $host
}
