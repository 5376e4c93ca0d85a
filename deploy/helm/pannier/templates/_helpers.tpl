{{- /* Also of the Service, whose name may be less than a release's. */ -}}
{{- define "pannier.name" -}}
{{- $name := .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the release is called %q, and so is its Service, which has to begin with a letter and to have no dots: choose another name" .Release.Name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "pannier.selector" -}}
app.kubernetes.io/name: pannier
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pannier.labels" -}}
{{ include "pannier.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "pannier.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Settings that become variables, as JSON: those of the values, and the chart's own where there is no file, which they would outrank. */ -}}
{{- define "pannier.settings" -}}
{{- $settings := dict -}}
{{- if not .Values.configSecret.name -}}
{{- $settings = dict "upstream" "redis://redis:6379/0" "max_memory" "256mb" "drain_delay" "5s" "drain_timeout" "10s" -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- $_ := set $settings $name $value -}}
{{- end -}}
{{- if .Values.upstreamSecret.name -}}
{{- $_ := unset $settings "upstream" -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{- /* A size of the settings (64mb, 1g, bytes) in MiB, rounded up. */ -}}
{{- define "pannier.mebibytes" -}}
{{- $text := . | trim | lower -}}
{{- if not (regexMatch "^[0-9]{1,15}\\s*([kmg]i?b|[bkmg])?$" $text) -}}
{{- fail (printf "%q is not a size: give one such as 64mb" .) -}}
{{- end -}}
{{- $units := dict "" 1 "b" 1 "k" 1000 "m" 1000000 "g" 1000000000 "kb" 1024 "mb" 1048576 "gb" 1073741824 "kib" 1024 "mib" 1048576 "gib" 1073741824 -}}
{{- $bytes := mul (regexFind "^[0-9]+" $text | atoi) (get $units (regexFind "[a-z]*$" $text)) -}}
{{- div (add $bytes 1048575) 1048576 -}}
{{- end -}}

{{- /* A duration of the settings (500ms, 5s, 2m) in seconds, rounded up. */ -}}
{{- define "pannier.seconds" -}}
{{- $text := . | trim | lower -}}
{{- if not (regexMatch "^[0-9]{1,9}(\\.[0-9]{1,9})?\\s*(ms|[smhd])?$" $text) -}}
{{- fail (printf "%q is not a duration: give one such as 5s" .) -}}
{{- end -}}
{{- $units := dict "" 1.0 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- mulf (regexFind "^[0-9.]+" $text | float64) (get $units (regexFind "[a-z]*$" $text)) | ceil | int64 -}}
{{- end -}}

{{- /* drain_delay and drain_timeout (where a file may say them, the chart's own), and 10 s to spare. */ -}}
{{- define "pannier.grace" -}}
{{- $settings := include "pannier.settings" . | fromJson -}}
{{- $delay := include "pannier.seconds" ($settings.drain_delay | default "5s") | atoi -}}
{{- $timeout := include "pannier.seconds" ($settings.drain_timeout | default "10s") | atoi -}}
{{- $needed := add $delay $timeout 5 | int -}}
{{- $given := int .Values.terminationGracePeriodSeconds -}}
{{- if and $given (lt $given $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, in which drain_delay and drain_timeout do not fit: give at least %d, or 0 for what they take" $given $needed) -}}
{{- end -}}
{{- $given | default (add $needed 5) -}}
{{- end -}}

{{- /* What docs/container.md gives to max_memory (where a file may say it, the chart's own), each worker and clients. */ -}}
{{- define "pannier.memory" -}}
{{- $settings := include "pannier.settings" . | fromJson -}}
{{- $entries := include "pannier.mebibytes" ($settings.max_memory | default "256mb") | atoi -}}
{{- $workers := $settings.workers | default "1" | trim | atoi -}}
{{- printf "%dMi" (add $entries (mul 48 (max 1 $workers)) (ternary 32 0 (gt $workers 1)) 80) -}}
{{- end -}}

{{- define "pannier.resources" -}}
{{- $limits := .Values.resources.limits | default dict | deepCopy -}}
{{- $requests := .Values.resources.requests | default dict | deepCopy -}}
{{- $_ := set $limits "memory" ($limits.memory | default (include "pannier.memory" .)) -}}
{{- $_ := set $requests "memory" ($requests.memory | default $limits.memory) -}}
{{- toYaml (merge (dict "limits" $limits "requests" $requests) .Values.resources) -}}
{{- end -}}

{{- /* The port of Redis, by the URL of the settings. */ -}}
{{- define "pannier.redisPort" -}}
{{- $settings := include "pannier.settings" . | fromJson -}}
{{- $place := regexReplaceAll "^[^:]*://([^/?]*@)?([^/?]*).*$" ($settings.upstream | default "" | trim) "${2}" -}}
{{- .Values.networkPolicy.redisPort | default (regexFind ":[0-9]+$" $place | trimPrefix ":") | default 6379 -}}
{{- end -}}

{{- /* Values that each may be right, and together are not. */ -}}
{{- define "pannier.refuse" -}}
{{- $settings := include "pannier.settings" . | fromJson -}}
{{- if eq (int .Values.ports.redis) (int .Values.ports.admin) -}}
{{- fail (printf "ports.redis and ports.admin are both %d: give two" (int .Values.ports.redis)) -}}
{{- end -}}
{{- if and $settings.warm_state (not (hasPrefix "/tmp/" $settings.warm_state)) -}}
{{- fail (printf "settings.warm_state is %q, but nothing can be written there: give a file in /tmp" $settings.warm_state) -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled (eq (lower ($settings.admin_protect | default "")) "all") (not .Values.podMonitor.tokenSecret.name) -}}
{{- fail "settings.admin_protect is all, so Prometheus has to show the token: name its Secret in podMonitor.tokenSecret" -}}
{{- end -}}
{{- end -}}
